"""What a job is, whoever runs it: the one specification from which sbatch scripts and Kubernetes objects are rendered.

Kept as `job.json` in the run's folder, so that the job can be submitted again as it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from framework.run.files import write_text
from framework.run.layout import JOB_FILE

LONGEST_NAME = 200

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+@-]*(?:/[A-Za-z0-9][A-Za-z0-9._=,+@-]*)*")
_PATH = re.compile(r"/[A-Za-z0-9._=,+@/-]*")
_OPTION = re.compile(r"--[a-z-]+=[0-9.e+-]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class SpecError(ValueError):
    """A specification that no launcher would run; the text has one line for each fault."""


@dataclass(frozen=True, slots=True)
class RunSpec:
    """The job that trains, or examines, in `folder`.

    `words` are those of `python -m framework`, run by `python` with the code in `code`, of commit `sha`, begun in
    `directory`. `packages` is the hash of what that Python has installed. On each of `nodes` of the type `instance` run
    `devices` workers, with `gpus` GPUs between them. The job may take `minutes`; `notice_s` seconds before they are up
    it is warned. It may begin anew `requeues` times. `placement` says where jobs beside it are put, which evaluate the
    checkpoints of the run in `watched`: its own folder, or that of the run that it evaluates itself (None: nothing is
    evaluated). `supervision` are options of its nodes' supervisors. Its variables are set to `environment`; `passed`
    and `secrets` name those that it takes from who submits it or from a store of secrets: values of theirs are written
    nowhere.
    """

    name: str
    folder: str
    directory: str
    code: str
    sha: str
    python: str
    packages: str
    words: tuple[str, ...]
    nodes: int
    devices: int
    gpus: int
    minutes: int
    notice_s: int = 300
    requeues: int = 20
    instance: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    placement: tuple[tuple[str, str], ...] = ()
    watched: str | None = None
    supervision: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises `SpecError` with every fault: what is not refused here is inert in every rendering."""
        if faults := list(self._faults()):
            raise SpecError("\n".join(faults))

    def _faults(self) -> Iterator[str]:
        if not _NAME.fullmatch(self.name) or len(self.name) > LONGEST_NAME:
            allowed = f"parts of letters, digits and ._=,+@- joined by /, at most {LONGEST_NAME} characters"
            yield f"run.name: {self.name!r} cannot be a job's name; allowed are {allowed}"
        for field in ("folder", "directory", "code", "python"):
            path = getattr(self, field)
            if not _PATH.fullmatch(path):
                yield f"{field}: {path!r} must be absolute and of letters, digits and ._=,+@-/ only; move or rename it"
        for word in self.words:
            if not _is_text(word):
                yield f"words: {word!r} cannot be an argument of a program: it holds a NUL or half a character"
        for option in self.supervision:
            if not _OPTION.fullmatch(option):
                yield f"launch.hang, launch.restart: {option!r} is no option of a supervisor: give numbers"
        for name, value in self.environment:
            if not _VARIABLE.fullmatch(name) or not _is_text(value):
                yield f"launch.variables: {name!r} cannot be set: letters, digits and _ for a name, no NUL in a value"
        for name in (*self.passed, *self.secrets):
            if not _VARIABLE.fullmatch(name):
                yield f"launch.secrets: {name!r} is not the name of a variable; values are never given here"
        for field, least in (
            ("nodes", 1),
            ("devices", 1),
            ("gpus", 0),
            ("minutes", 1),
            ("notice_s", 0),
            ("requeues", 0),
        ):
            if getattr(self, field) < least:
                yield f"launch.{field}: {getattr(self, field)} must be at least {least}"

    def command(self) -> tuple[str, ...]:
        """What runs once on each node: the supervisor of the node's workers."""
        return (self.python, *self.module())

    def module(self) -> tuple[str, ...]:
        """The arguments of the Python that runs on each node."""
        supervisor = ("-m", "framework.launch.supervisor.main", "--folder", self.folder)
        size = ("--workers", str(self.devices), "--nodes", str(self.nodes))
        return (*supervisor, *size, *self.supervision, "--", *self.words)

    def variables(self) -> dict[str, str]:
        """What the job's environment is set to. The snapshot comes before what the environment has installed, and the
        working directory, which may hold another version of the code, is kept off Python's path."""
        return {"PYTHONPATH": self.code, "PYTHONSAFEPATH": "1", **dict(self.environment)}

    def save(self) -> None:
        """Write `job.json` into the run's folder, replacing it in one step."""
        write_text(Path(self.folder, JOB_FILE), json.dumps(asdict(self), indent=2) + "\n")


def load(folder: Path) -> RunSpec:
    """The specification of the run in `folder`. Raises `SpecError` naming the file where there is none that can be
    read.
    """
    file = folder / JOB_FILE
    try:
        read: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        for name in ("environment", "placement"):
            read[name] = tuple((str(key), str(value)) for key, value in read[name])
        for name in ("words", "passed", "secrets", "supervision"):
            read[name] = tuple(map(str, read[name]))
        return RunSpec(**read)
    except FileNotFoundError as error:
        raise SpecError(
            f"{file}: not there; the run was not submitted with launch=slurm, pytorchjob or hyperpod"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise SpecError(f"{file}: {error}; submit the run anew") from error


def _is_text(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)
