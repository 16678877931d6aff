"""The folder of a run: its resolved recipe and each value's provenance, the code, the environment, the attempts.

The folder's name is the run's identity (contract 4). Submitting the same run again continues in it: files are rewritten
for the new attempt, and a recipe that has changed keeps its predecessor as `recipe.attempt-<n>.yaml`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import framework
from framework.recipe.credentials import masked
from framework.run.files import append_line, read_records, write_text
from framework.run.layout import (
    ATTEMPTS_FILE,
    CODE_DIFF_FILE,
    CODE_FILE,
    ENVIRONMENT_FILE,
    PROVENANCE_FILE,
    RECIPE_FILE,
    superseded_recipe_file,
)
from framework.run.worker import supervised_attempt
from framework.run.writer_lock import writing

RECORDED_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "LOCAL_WORLD_SIZE",
    "NNODES",
    "OMP_NUM_THREADS",
    "SLURM_JOB_ID",
    "WORLD_SIZE",
)
"""Environment variables whose values are recorded. No other is read, since it may hold a secret."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run in one of its attempts."""

    path: Path
    """The run's folder."""
    attempt: int
    """The attempt, counted from 1."""
    name: str
    """The run's name."""
    seed: int
    """The seed of all the run's randomness."""

    def identity(self) -> dict[str, str]:
        """What distinguishes this run from any other: name, attempt, seed, the code's commit, and whether the tree
        had uncommitted changes.
        """
        code = json.loads((self.path / CODE_FILE).read_text(encoding="utf-8"))
        sha = f"{code['sha'] or 'no commit'}{' with uncommitted changes' if code['dirty'] else ''}"
        return {"run": self.name, "attempt": str(self.attempt), "seed": str(self.seed), "code": sha}

    def recipe(self) -> dict[str, Any]:
        """The resolved recipe, nested as in `recipe.yaml`."""
        tree: dict[str, Any] = yaml.safe_load((self.path / RECIPE_FILE).read_text(encoding="utf-8"))
        return tree


def is_first_rank() -> bool:
    """Whether this is rank 0, the one process of a job that writes the run's own files."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def newest_attempt(folder: Path) -> int:
    """The number of the newest attempt of the run in `folder`; 0 before the first. A line without a number is none."""
    numbers = (entry.get("attempt") for entry in read_records(folder / ATTEMPTS_FILE))
    return max((number for number in numbers if type(number) is int and number > 0), default=0)


@contextmanager
def open_run(
    tree: Mapping[str, Any], provenance: Mapping[str, str], overrides: Sequence[str] = ()
) -> Iterator[RunFolder]:
    """Start an attempt of the run: store what identifies it, and record its start and its end in `attempts.jsonl`.

    Only rank 0 writes, and holds the folder against any other writer; see `writing`. An exception is recorded and
    raised again. Raises `RunInUseError` where another process writes in the folder.

    Args:
        tree: The resolved recipe.
        provenance: The line or override that set each value, by dotted key.
        overrides: The words of the command line.
    """
    path = Path(tree["run"]["folder"])
    with writing(path) if is_first_rank() else nullcontext():
        attempt = supervised_attempt() or 1 + newest_attempt(path)
        folder = RunFolder(path, attempt, str(tree["run"]["name"]), int(tree["run"]["seed"]))
        if is_first_rank():
            with _recorded(folder, tree, provenance, overrides):
                yield folder
        else:
            yield folder


@contextmanager
def _recorded(
    folder: RunFolder, tree: Mapping[str, Any], provenance: Mapping[str, str], overrides: Sequence[str]
) -> Iterator[None]:
    """Store what identifies the attempt, and record its start and its end."""
    path, attempt = folder.path, folder.attempt
    attempts = path / ATTEMPTS_FILE
    _write_recipe(folder, tree)
    code = _code(Path(framework.__file__).parent)
    write_text(path / CODE_DIFF_FILE, masked(code.pop("diff")))
    _write_sorted(path / CODE_FILE, code)
    _write_sorted(path / PROVENANCE_FILE, provenance)
    _write_sorted(path / ENVIRONMENT_FILE, _environment())
    started = time.time()
    _record(attempts, event="start", attempt=attempt, time=started, overrides=list(overrides), sha=code["sha"])
    outcome = "failed"
    try:
        yield
        outcome = "finished"
    except BaseException as error:
        outcome = type(error).__name__
        raise
    finally:
        seconds = round(time.time() - started, 3)
        _record(attempts, event="end", attempt=attempt, time=time.time(), outcome=outcome, seconds=seconds)


def _write_sorted(file: Path, value: Any) -> None:
    write_text(file, masked(json.dumps(value, indent=2, sort_keys=True)) + "\n")


def _record(file: Path, **entry: Any) -> None:
    append_line(file, json.dumps(entry))


def _write_recipe(folder: RunFolder, tree: Any) -> None:
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)
    file = folder.path / RECIPE_FILE
    if file.exists() and file.read_text(encoding="utf-8") != text:
        file.replace(superseded_recipe_file(folder.path, folder.attempt - 1))
    write_text(file, text)


def _code(root: Path) -> dict[str, Any]:
    """The commit of the code in `root`, and how the tree differs from it. `sha` is None outside a git checkout."""
    sha = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain") or ""
    return {
        "sha": sha.strip() if sha else None,
        "dirty": bool(status.strip()),
        "untracked": [line[3:] for line in status.splitlines() if line.startswith("??")],
        "version": importlib.metadata.version("framework"),
        "diff": _git(root, "diff", "HEAD") or "",
    }


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace")


def _environment() -> dict[str, Any]:
    packages = {package.metadata["Name"]: package.version for package in importlib.metadata.distributions()}
    return {
        "python": sys.version,
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": dict(sorted(packages.items())),
        "variables": {name: os.environ[name] for name in RECORDED_VARIABLES if name in os.environ},
    }
