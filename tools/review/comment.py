"""The review as Markdown."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MARKER = "<!-- recipe review -->"
"""The first line, by which the workflow finds its own comment."""
MOST_LINES = 60
"""Differences of one recipe that are shown; the rest is counted."""
MOST_FILES = 12
"""Files of code that are named; the rest is counted."""

Side = Mapping[str, Any]
COLUMNS = {
    "tokens_per_step": ("tokens a step", "{:,.0f}"),
    "peak_gib": ("peak memory of a rank (GiB)", "{:.2f}"),
    "device_hours": ("hours of one H100", "{:,.3f}"),
}
"""Figures of a stage's plan: title and format."""


def comment(
    base: str,
    head: str,
    trust: bool,
    before: Side,
    after: Side,
    changed: Sequence[str],
    parents: Side,
    plans: tuple[Side, Side],
    components: Sequence[tuple[str, Sequence[str]]],
    unread: Sequence[str],
) -> str:
    """The whole comment. `before` and `after` hold each recipe's values, origins and problems; `changed` names the
    recipes whose values differ; `parents` has the differences of new ones from what they derive from; `plans` are those
    of both sides; `unread` are the files of code that the head changes and that were not executed."""
    by = "the head's own code" if trust else "the base's code; of the head only YAML was read"
    lines = [MARKER, "## Recipe review", "", f"`{_code(head)}` against `{_code(base)}`, read by {by}.", ""]
    lines += _unread(unread)
    lines += _problems(before, after)
    if not changed:
        lines += ["No recipe resolves to anything else.", ""]
    for name in changed:
        lines += _recipe(name, before.get(name), after.get(name), parents.get(name), plans)
    lines += _components(components)
    return "\n".join(lines).rstrip()


def new_faults(before: Side, after: Side) -> list[str]:
    """The problems of the head, warnings aside, that the base does not have.

    A recipe and the curricula that list it have the same problem under two keys: the shorter one, which the recipe
    writes, names it.
    """
    known = {text for side in before.values() for text, _ in side["problems"]}
    problems = itertools.chain.from_iterable(side["problems"] for side in after.values())
    faults = [text for text, warning in problems if not warning and text not in known]
    once: dict[tuple[str, str, str], str] = {}
    for text in faults:
        place, _, message = text.partition(": ")
        line, _, key = place.rpartition(" ")
        same = (line, key.rpartition(".")[2], message)
        once[same] = min(once.get(same, text), text, key=len)
    return list(once.values())


def _problems(before: Side, after: Side) -> Iterator[str]:
    if faults := new_faults(before, after):
        yield f"### {len(faults)} problem{'s' * (len(faults) > 1)}"
        yield ""
        yield from _block(faults)


def _unread(files: Sequence[str]) -> Iterator[str]:
    if files:
        more = len(files) - MOST_FILES
        named = ", ".join(f"`{_code(file)}`" for file in files[:MOST_FILES]) + (f" and {more} more" if more > 0 else "")
        yield f"Code that the branch changes, and that was not executed: {named}."
        yield "Recipes that need it, and those of new plugins, are reviewed with `--trust` alone."
        yield ""


def _recipe(
    name: str, old: Side | None, new: Side | None, parent: Side | None, plans: tuple[Side, Side]
) -> Iterator[str]:
    yield f"### `{_code(name)}`" + (" (new)" if old is None else " (removed)" if new is None else "")
    yield ""
    was, now = (side["values"] if side else {} for side in (old, new))
    differences = [
        f"{key}: {was[key][0] if key in was else '(absent)'} -> {now[key][0] if key in now else '(absent)'}"
        f"   ({now[key][1] if key in now else was[key][1]})"
        for key in sorted(was.keys() | now.keys())
        if was.get(key, [None])[0] != now.get(key, [None])[0]
    ]
    if old is not None and new is not None:
        yield from _differences(differences)
    if parent is not None:
        yield f"Against {_text(parent['against'])}:"
        yield ""
        yield from _differences(parent["lines"] or ["no difference"])
    yield from _plan(plans[0].get(name, []), plans[1].get(name, []))
    if new is not None and new["valid"]:
        yield f"Try it: `python -m framework recipe={_code(name)} scale=tiny`"
        yield ""


def _differences(lines: Sequence[str]) -> Iterator[str]:
    more = len(lines) - MOST_LINES
    yield from _block([*lines[:MOST_LINES], *([f"... and {more} more"] if more > 0 else [])])


def _plan(old: Any, new: Any) -> Iterator[str]:
    for side, word in ((old, "before"), (new, "after")):
        if isinstance(side, str):
            yield f"No plan {word}: {_text(side)}"
            yield ""
    stages: dict[str, list[dict[str, Any] | None]] = {}
    for position, side in enumerate((old, new)):
        for stage in side if isinstance(side, list) else []:
            stages.setdefault(stage["name"], [None, None])[position] = stage
    if not stages:
        return
    yield "| stage | " + " | ".join(title for title, _ in COLUMNS.values()) + " |"
    yield "| --- |" + " --- |" * len(COLUMNS)
    for name, pair in stages.items():
        cells = [
            _change(*("" if stage is None else form.format(stage[key]) for stage in pair))
            for key, (_, form) in COLUMNS.items()
        ]
        yield f"| {_text(name)} | " + " | ".join(cells) + " |"
    yield ""


def _change(before: str, after: str) -> str:
    return after if before == after else f"{before or '(none)'} -> {after or '(none)'}"


def _components(components: Sequence[tuple[str, Sequence[str]]]) -> Iterator[str]:
    if components:
        yield "### Components"
        yield ""
        for name, lines in components:
            yield f"`{_code(name)}`"
            yield ""
            yield from _block(lines)


def _block(lines: Sequence[str]) -> Iterator[str]:
    """Lines of the head's in a fence that they cannot close."""
    fence = "```"
    while any(fence in line for line in lines):
        fence += "`"
    yield f"{fence}diff" if any(line[:2] in ("+ ", "- ") for line in lines) else fence
    yield from (line.replace("\r", "").replace("\n", " ") for line in lines)
    yield fence
    yield ""


def _code(text: str) -> str:
    return text.replace("`", "'").replace("\n", " ")


def _text(text: str) -> str:
    escaped = html.escape(text).replace("|", "\\|").replace("\n", " ")
    return escaped.replace("[", "\\[").replace("@", "@\u200b")
