"""The configuration reference: every component's arguments with type, range, default and meaning, as pages."""

from __future__ import annotations

from pathlib import Path

from framework.recipe.catalogue import Catalogue
from framework.recipe.reference import ArgumentReference, ComponentReference, components, describe_component

HEADING = ["| argument | type | range | default | meaning |", "| --- | --- | --- | --- | --- |"]


def reference_pages(root: Path) -> dict[str, str]:
    """The pages by package: the text of `docs/reference/<package>.md`."""
    described = [describe_component(located) for located in components(Catalogue(root))]
    pages: dict[str, list[str]] = {}
    for component in sorted(described, key=lambda each: each.target):
        package = component.target.split(".")[1] if component.target.startswith("framework.") else "plugins"
        pages.setdefault(package, []).append(_section(component))
    return {name: f"# Reference: {name}\n\n" + "\n".join(sections) for name, sections in sorted(pages.items())}


def _section(component: ComponentReference) -> str:
    name = component.target.rpartition(".")[2]
    lines = [f"## {name}", "", f"`{component.target}`", "", component.description, ""]
    rows = [_row(argument) for argument in component.arguments if not argument.name.startswith("_")]
    return "\n".join([*lines, *(HEADING if rows else []), *rows, ""])


def _row(argument: ArgumentReference) -> str:
    cells = (argument.name, argument.type, argument.range, argument.default or "", argument.description)
    name, kind, bounds, default, meaning = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return f"| `{name}` | {_code(kind)} | {bounds} | {_code(default)} | {meaning} |"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""
