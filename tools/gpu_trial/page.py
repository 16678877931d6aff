"""The trial's page: its JSON as Markdown, for the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def page(trial: Mapping[str, Any]) -> str:
    """The page of a trial's JSON."""
    lines = ["# The trial of a GPU", "", *_head(trial), ""]
    for record in trial["steps"]:
        lines += [f"## {record['step']}", "", f"{record['status']}, {record['seconds']} s", ""]
        lines += [f"    {line}" for line in record.get("end_of_log", [])[-5:]] + [""] * ("end_of_log" in record)
        lines += [*_tables(record["figures"]), ""] if record["figures"] else []
    return "\n".join(lines).rstrip() + "\n"


def _head(trial: Mapping[str, Any]) -> Iterator[str]:
    device = next((each["figures"].get("name") for each in trial["steps"] if each["step"] == "device"), None)
    if trial["device"] == "cpu":
        yield "A dry run on a CPU with the tiny model: every branch is taken, and no figure says anything about a GPU."
    else:
        yield f"One {device or 'GPU'}, commit {trial['commit']}; made by `python -m tools.gpu_trial`."


def _tables(figures: Mapping[str, Any]) -> Iterator[str]:
    """One table of plain figures, and one for each group of them."""
    plain = {name: value for name, value in figures.items() if not isinstance(value, Mapping)}
    if plain:
        yield from ("| figure | value |", "| --- | --- |")
        yield from (f"| {_words(name)} | {_number(value)} |" for name, value in plain.items())
        yield ""
    groups = {name: value for name, value in figures.items() if isinstance(value, Mapping) and value}
    deep = {name: value for name, value in groups.items() if any(isinstance(each, Mapping) for each in value.values())}
    flat = {name: value for name, value in groups.items() if name not in deep}
    if flat:
        columns = list(dict.fromkeys(column for value in flat.values() for column in value))
        yield "| | " + " | ".join(map(_words, columns)) + " |"
        yield "| --- " * (len(columns) + 1) + "|"
        for name, value in flat.items():
            yield f"| {_words(name)} | " + " | ".join(_number(value.get(column)) for column in columns) + " |"
        yield ""
    for name, value in deep.items():
        yield from (f"**{_words(name)}**", "")
        yield from _tables(value)


def _words(name: str) -> str:
    return str(name).replace("_", " ")


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_number, value))
    return str(value).replace("|", "\\|")
