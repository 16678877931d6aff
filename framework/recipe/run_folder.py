"""Checks the name and the folder that a recipe gives a run: file systems take them, and the folder is its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from framework.recipe.arguments import fault_at
from framework.recipe.composition import Composition
from framework.recipe.layers import child
from framework.recipe.problem import Key, Problem

LONGEST_NAME, LONGEST_PATH = 255, 3_000
"""Bytes that file systems allow a folder's name, and its path: of 4,095, the rest is for what lies in the run's."""
SYSTEM = tuple(map(Path, ("/bin", "/boot", "/etc", "/lib", "/proc", "/sbin", "/sys", "/usr")))
"""Folders of the operating system, below which no run lies."""
SHOWN_FILES = 3
"""Files of a foreign folder that a message names."""
OWN_FILES = (
    "recipe*.yaml",
    "attempts.jsonl",
    "failures.jsonl",
    "writer.*",
    "job*",
    "submissions.jsonl",
    "submit.lock",
    "trial.json*",
    "study.journal*",
    "phases.node-*",
    "checkpoints",
    "evaluations",
)
"""What lies in a run's folder from its submission or its start on, or where a sweep keeps its runs; see
`framework/run/layout.py`."""


def folder_faults(composition: Composition) -> Iterator[Problem]:
    """The first fault of `run.name` or `run.folder`, at the name where the folder comes from it."""
    if not isinstance(run := child(composition.tree, "run"), dict):
        return
    name, folder = (str(run.get(key, "")) for key in ("name", "folder"))
    at: Key = ("run", "name" if name and name in folder else "folder")
    if not folder.strip() or not name.strip():
        empty = "folder" if name.strip() else "name"
        yield fault_at(composition, ("run", empty), "is empty; a run has a name, and a folder of its own")
    elif wrong := _name_fault(name):
        yield fault_at(composition, ("run", "name"), wrong)
    elif wrong := _spelling_fault(folder):
        yield fault_at(composition, at, wrong)
    elif wrong := _place_fault(folder):
        yield fault_at(composition, at, f"{wrong}; give the run a folder of its own")
    elif composition.stored_in is None and (files := _foreign_files(Path(folder))):
        more = f" and {len(files) - SHOWN_FILES} more" if files[SHOWN_FILES:] else ""
        message = f"{folder} holds files, and none of a run ({', '.join(files[:SHOWN_FILES])}{more}), which stay in it"
        yield replace(fault_at(composition, at, message), warning=True)


def _name_fault(name: str) -> str | None:
    """What is wrong with the name of a run."""
    parts = name.split("/")
    if not {".", ".."}.isdisjoint(parts) or name.startswith("/"):
        return f"{name!r} leads out of the folder of all runs; give a name"
    if not name.isprintable() or any(each != "".join(each.split()) or not each for each in parts):
        wrong = f"{name!r} has white space, characters that nobody sees or an empty part, which logs cannot tell apart"
        return f"{wrong}; write words with - or _ between them"
    if any(each.startswith(("-", "~")) for each in parts):
        return f"{name!r}: commands read - at a word's start as an option and ~ as a home; begin with a letter or digit"
    return None


def _spelling_fault(folder: str) -> str | None:
    """What no file system takes, or would take for something else, in a folder's path."""
    if "\0" in folder:
        return "holds a NUL, which no file's name can"
    if not folder.isprintable():
        return f"{folder!r} has line breaks or characters that nobody sees; leave them out"
    if folder.startswith(("-", "~")):
        return f"{folder!r}: - at the start is read as an option, and ~ is not expanded; write the path out"
    part, size = max(((part, len(part.encode())) for part in folder.split("/")), key=lambda each: each[1])
    if size > LONGEST_NAME:
        return f"{part[:40]}... has {size} bytes, and a folder's name at most {LONGEST_NAME}"
    if (size := len(folder.encode())) > LONGEST_PATH:
        return f"the run's folder has a path of {size} bytes; it can have {LONGEST_PATH}"
    return None


def _place_fault(folder: str) -> str | None:
    """Why a run may not write in `folder`, as it is on this machine."""
    path = Path(folder)
    try:
        whole = path.resolve()
        if Path.home().resolve().is_relative_to(whole):
            return f"{folder} is the root or a home"
        if any(map(whole.is_relative_to, SYSTEM)):
            return f"{folder} is the system's"
        above = next(each for each in (path, *path.parents) if each.exists() or each.is_symlink())
        if not above.is_dir():
            return f"{above} is no folder"
        if above != path:
            return None
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            return f"{folder} cannot be written by this user"
        if (path / ".git").exists() and _foreign_files(path):
            return f"{folder} is a repository"
    except (OSError, RuntimeError) as error:  # links that lead to themselves; no home
        return f"{folder}: {getattr(error, 'strerror', None) or error}"
    return None


def _foreign_files(path: Path) -> list[str]:
    """The names of the files in a folder that holds none of a run; none where it does, or runs of a sweep below it."""
    files = sorted(each.name for each in path.iterdir()) if path.is_dir() else []
    known = any(map(_is_own, files)) or any((path / each / "recipe.yaml").exists() for each in files)
    return [] if known else files


def _is_own(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in OWN_FILES)
