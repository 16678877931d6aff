"""The fenced blocks of README and docs, and what becomes of each: run, shortened, checked, or not run for a reason."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sybil import Sybil
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

ROOT = Path(__file__).resolve().parents[2]
GENERATED = {"guarantees.md", "attacks.md", "reference"}
"""Pages of `tools.docs`, which hold no commands."""
SHELL, CODE, PLAIN = {"sh"}, {"python", "yaml"}, {"", "text"}
"""Languages whose commands run, whose code the how-tos' test runs, and that show no commands."""
REASON = re.compile(r"<!-- not run: (?P<reason>[^\n]+?) -->\s*\Z")
"""The mark in front of a fence that no test runs."""


class Treatment(StrEnum):
    """What the tests do with a command."""

    RUN = "run"
    """It runs as it is written, in seconds."""
    RUN_SLOW = "run in the slow suite"
    """It runs as it is written, or at a small size, in the slow suite."""
    HOW_TO = "run with their how-to"
    """It runs in a copy of the repository that holds the how-to's files."""
    CHECKED = "checked"
    """It would train for long: its recipe is composed and checked with the same words."""
    NOT_RUN = "not run"
    """The document says why."""


@dataclass(frozen=True, slots=True)
class Fence:
    """A fenced block."""

    file: str
    """The document, relative to the repository."""
    line: int
    """The line of the opening fence."""
    info: str
    """What follows the opening fence: the language, and a title."""
    text: str
    """The content."""
    reason: str | None
    """Why it is not run, from the comment in front; None where a test must run it."""

    @property
    def language(self) -> str:
        """The first word of the info."""
        return self.info.partition(" ")[0]

    @property
    def title(self) -> str | None:
        """The file that the block is, from `title="FILE"`."""
        match = re.search(r'title="([^"]+)"', self.info)
        return match[1] if match else None


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a fence."""

    fence: Fence
    """The fence."""
    line: int
    """Its line in the document."""
    words: tuple[str, ...]
    """Its words; those of a shell's comment are dropped."""

    @property
    def treatment(self) -> Treatment:
        """What the tests do with it."""
        match self.words:
            case _ if self.fence.reason is not None:
                return Treatment.NOT_RUN
            case _ if self.fence.file.startswith("docs/howto/"):
                return Treatment.HOW_TO
            case ("python", "-m", "framework", "plan", *_) | ("python", "-m", "framework.launch.eval_jobs.watcher", *_):
                return Treatment.RUN_SLOW
            case ("python", "-m", "framework", "check" | "show" | "diff" | "status" | "show-data" | "--help", *_):
                return Treatment.RUN
            case ("python", "-m", "framework", *rest) if "launch.dry_run=true" in rest:
                return Treatment.RUN
            case ("python", "-m", "framework", *_) if self.fence.file == "README.md" and "scale=tiny" in self.words:
                return Treatment.RUN_SLOW
            case ("python", "-m", str(module), *_) if module.startswith("tools."):
                return Treatment.RUN_SLOW
        return Treatment.CHECKED

    def __str__(self) -> str:
        return f"{self.fence.file}:{self.line}: {shlex.join(self.words)}"


def documents() -> list[Path]:
    """README, CONTRIBUTING and the pages that people write."""
    pages = [
        page for page in (ROOT / "docs").rglob("*.md") if page.relative_to(ROOT / "docs").parts[0] not in GENERATED
    ]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(pages)]


def fences(file: Path) -> Iterator[Fence]:
    """Yields the fenced blocks of a document."""
    document = Sybil(parsers=[]).parse(file)
    for region in RawFencedCodeBlockLexer(re.compile(r"(?P<info>[^\n]*)\n"))(document):
        line = document.text.count("\n", 0, region.start) + 1
        marked = REASON.search(document.text[: region.start])
        reason = marked["reason"] if marked else None
        name = file.relative_to(ROOT).as_posix()
        yield Fence(name, line, region.lexemes["info"].strip(), str(region.lexemes["source"]), reason)


def commands() -> list[Command]:
    """All commands of all documents."""
    return [command for file in documents() for fence in fences(file) for command in _commands_of(fence)]


def _commands_of(fence: Fence) -> Iterator[Command]:
    if fence.language not in SHELL:
        return
    lines = enumerate(fence.text.splitlines(), start=fence.line + 1)
    for number, line in lines:
        while line.rstrip().endswith("\\"):
            line = line.rstrip()[:-1] + next(lines)[1]
        words = tuple(shlex.split(line, comments=True))
        if words:
            yield Command(fence, number, words)
