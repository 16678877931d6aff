"""The configuration reference: every component's arguments with type, range, default and meaning.

It is read from the source of what `@component` declares, as `check` reads it: nothing is imported.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from framework.recipe.bounds import describe, read_bounds
from framework.recipe.catalogue import Catalogue
from framework.recipe.signature import (  # fmt: skip
    Located,
    Module,
    base_classes,
    declares_component,
    locate,
    read_module,
    resolve_expression,
    signature,
)


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a component."""

    name: str
    """The key in a recipe."""
    type: str
    """Its type, as it is annotated."""
    range: str
    """The numbers that it may be; empty where any will do."""
    default: str
    """Its default; empty where a recipe must give it."""
    meaning: str
    """What it is for."""


def reference_pages(root: Path) -> dict[str, str]:
    """The pages by package: the text of `docs/reference/<package>.md`."""
    pages: dict[str, list[str]] = {}
    for target in components(root):
        package = target.split(".")[1] if target.startswith("framework.") else "plugins"
        pages.setdefault(package, []).append(_section(target, locate(target)))
    return {name: f"# Reference: {name}\n\n" + "\n".join(sections) for name, sections in sorted(pages.items())}


def components(root: Path) -> list[str]:
    """The dotted names of all components of the framework and of the plugins in `root`, sorted."""
    Catalogue(root).make_plugins_importable()
    names = []
    for folder, base in ((root / "framework", root), (root / "plugins", root / "plugins")):
        for file in folder.rglob("*.py"):
            if "tests" in file.parts:
                continue
            module = ".".join(file.relative_to(base).with_suffix("").parts).removesuffix(".__init__")
            source = read_module(module)
            names += [f"{module}.{name}" for name in source.definitions if _declares(module, name)] if source else []
    return sorted(names)


def _declares(module: str, name: str) -> bool:
    located = locate(f"{module}.{name}")
    return located.module == module and declares_component(located)


def _section(target: str, located: Located) -> str:
    text = ast.get_docstring(located.node) if isinstance(located.node, ast.ClassDef | ast.FunctionDef) else ""
    body = re.split(r"^(?:Args|Returns|Raises|Attributes):", text or "", maxsplit=1, flags=re.M)[0].strip()
    lines = [f"## {located.qualname}", "", f"`{target}`", "", body, ""]
    arguments = list(_arguments(located))
    if arguments:
        lines += ["| argument | type | range | default | meaning |", "| --- | --- | --- | --- | --- |"]
        cells = [
            (f"`{each.name}`", _code(each.type), each.range, _code(each.default), each.meaning) for each in arguments
        ]
        lines += [f"| {' | '.join(map(_cell, row))} |" for row in cells]
    return "\n".join([*lines, ""])


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _arguments(located: Located) -> Iterator[Argument]:
    defaults, meanings = _facts(located)
    for name, parameter in signature(located).parameters.items():
        if name.startswith("_"):
            continue
        kind, ranges = _type(parameter.annotation, parameter.source)
        yield Argument(name, kind, "; ".join(ranges), defaults.get(name, ""), meanings.get(name, ""))


def _facts(located: Located) -> tuple[dict[str, str], dict[str, str]]:
    """Defaults and meanings by argument, those of base classes included."""
    defaults: dict[str, str] = {}
    meanings: dict[str, str] = {}
    if isinstance(located.node, ast.FunctionDef):
        return _of_function(located.node), _documented(located.node)
    for base in base_classes(located):
        ours = base is not None and base.module.partition(".")[0] == located.module.partition(".")[0]
        if base is not None and ours and base.node is not located.node:
            inherited = _facts(base)
            defaults |= inherited[0]
            meanings |= inherited[1]
    if isinstance(located.node, ast.ClassDef):
        meanings |= _documented(located.node)
        name = ""
        for statement in located.node.body:
            match statement:
                case ast.AnnAssign(target=ast.Name(id=name), value=value):
                    if value is not None and (default := _default(value)):
                        defaults[name] = default
                case ast.Expr(value=ast.Constant(value=str(text))) if name:
                    meanings[name], name = inspect.cleandoc(text), ""
                case ast.FunctionDef(name="__init__"):
                    defaults |= _of_function(statement)
    return defaults, meanings


def _of_function(node: ast.FunctionDef) -> dict[str, str]:
    named = [*node.args.posonlyargs, *node.args.args]
    pairs = [*zip(named[len(named) - len(node.args.defaults) :], node.args.defaults, strict=True),
             *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]  # fmt: skip
    return {argument.arg: _default(value) for argument, value in pairs if value is not None}


def _default(value: ast.expr) -> str:
    """A default as written; of `field(default_factory=F)` the call of F; nothing for a field without default."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        words = {word.arg: word.value for word in value.keywords}
        if "default" in words:
            return ast.unparse(words["default"])
        if "default_factory" in words:
            factory = ast.unparse(words["default_factory"])
            return factory.removeprefix("lambda: ") if factory.startswith("lambda: ") else f"{factory}()"
        return ""
    return ast.unparse(value)


def _documented(node: ast.ClassDef | ast.FunctionDef) -> dict[str, str]:
    """The entries of a docstring's `Args:`."""
    text = ast.get_docstring(node) or ""
    block = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", text, flags=re.M)
    entries = re.split(r"^    (?=\w+:)", block.group(1), flags=re.M)[1:] if block else []
    return {name.strip(): " ".join(meaning.split()) for name, _, meaning in (entry.partition(":") for entry in entries)}


def _type(annotation: ast.expr | None, source: Module) -> tuple[str, list[str]]:
    """The type, with the names of ranges replaced by what they annotate, and the ranges in words."""
    if annotation is None:
        return "", []
    ranges: list[str] = []

    class Plain(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            located = resolve_expression(node, source)
            if located is None or located.source is None or not isinstance(located.node, ast.Subscript):
                return node
            return self._unannotated(located.node, located.source, node)

        def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
            plain = self._unannotated(node, source, node)
            return self.generic_visit(node) if plain is node else plain  # type: ignore[return-value]

        def _unannotated(self, node: ast.Subscript, where: Module, otherwise: ast.expr) -> ast.expr:
            if ast.unparse(node.value) != "Annotated" or not isinstance(node.slice, ast.Tuple):
                return otherwise
            base, *metadata = node.slice.elts
            if bounds := read_bounds(metadata, where):
                ranges.append(describe(bounds))
            return base

    return ast.unparse(Plain().visit(ast.parse(ast.unparse(annotation), mode="eval").body)), list(dict.fromkeys(ranges))
