"""Says in plain words what is wrong with a file that is not YAML, at the line where the mistake is and not where the
parser noticed it.
"""

from __future__ import annotations

import yaml

CLOSING = {"{": "}", "[": "]"}


def yaml_fault(error: yaml.MarkedYAMLError, text: str) -> tuple[int | None, str]:
    """The line of the mistake in `text`, from 1 on, and what to do about it; no line where the parser names none."""
    if error.problem_mark is None:
        return None, f"is not YAML: {error.problem}"
    lines = [*text.splitlines(), ""]
    at, column = min(error.problem_mark.line, len(lines) - 1), error.problem_mark.column
    start = error.context_mark.line if error.context_mark is not None else at
    problem, line = error.problem or "", lines[at]
    sign = line[column : column + 1]
    if "tab character" in problem or sign == "\t":
        return at + 1, "a tab indents this line; YAML is indented with spaces"
    if "end of stream" in problem and "quoted" in (error.context or ""):
        return start + 1, "a quote opens in this line and is not closed"
    for opening, closing in CLOSING.items():
        if f"or '{closing}'" in problem:
            return start + 1, _unclosed(opening, closing, line[:column], sign)
    if "expected ':'" in problem:
        return start + 1, _no_colon(lines[start])
    if "mapping values" in problem:
        return _second_value(lines, at, column)
    if "expected key" in problem:
        return at + 1, _no_key(line, column, sign)
    if "'-' indicator" in problem:
        return at + 1, "is indented like a list's entry and is none; begin it with '- ', or indent it less"
    if "cannot start" in problem:
        return at + 1, f"a value cannot begin with {sign}; put it in quotes"
    if "alias" in problem or "anchor" in (error.context or ""):
        return at + 1, "* and & at the start of a value refer to other values; put the value in quotes"
    if "escape" in problem:
        return at + 1, "a backslash in double quotes begins a special character; use single quotes"
    return at + 1, f"is not YAML: {problem}"


def _unclosed(opening: str, closing: str, before: str, sign: str) -> str:
    if before.endswith("$"):
        return f'a reference inside {opening} {closing} needs quotes: "${{...}}"'
    if sign and sign in "}]":
        return f"a {opening} opens in this line and is closed by {sign}"
    return f"a {opening} opens in this line and is not closed by {closing}, or a comma or colon is missing inside"


def _no_colon(line: str) -> str:
    word, *value = line.split() or [""]
    return f"a colon is missing: write '{word}: {' '.join(value)}'".replace(": '", ":'")


def _second_value(lines: list[str], at: int, column: int) -> tuple[int, str]:
    """A colon where a value is: of another pair in the same line, or because the line above has no colon, or because
    the indentation makes the line one with that above.
    """
    if ": " in lines[at][:column]:
        return at + 1, "two colons in one line; put the value in quotes"
    above = next((number for number in range(at - 1, -1, -1) if lines[number].strip()), at)
    key, colon, value = lines[above].partition(":")
    if not colon:
        return above + 1, _no_colon(lines[above])
    if value and not value.startswith(" "):
        return above + 1, f"a blank is missing behind the colon: write '{key.strip()}: {value}'"
    return at + 1, "is indented deeper than the line above, which has a value already; align the two"


def _no_key(line: str, column: int, sign: str) -> str:
    if sign and sign in "}]":
        return f"a {sign} closes what was never opened; leave it out"
    if line[:column].rstrip().endswith(("'", '"')):
        return "text follows a closing quote; put the other kind of quotes around the whole value"
    if line.lstrip().startswith("- "):
        return "a list's entry stands among keys; indent it below the key of its list"
    return "is indented like no line above; align it with the keys it belongs to"
