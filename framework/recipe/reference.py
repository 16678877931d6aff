"""The components that a recipe may name: the type, default, range and description of each argument, from source."""

from __future__ import annotations

import ast
import copy
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from framework.recipe.annotation import SCALARS, last_name
from framework.recipe.bounds import describe, fewest, read_bounds
from framework.recipe.catalogue import Catalogue
from framework.recipe.signature import (
    Located,
    Module,
    Parameter,
    base_classes,
    declares_component,
    locate,
    resolve_expression,
    signature,
)

NUMBERS = ("int", "float")
SECTION = re.compile(r"^(?:Args|Returns|Raises|Attributes):", re.MULTILINE)
"""Where the first section of a docstring begins."""


@dataclass(frozen=True)
class ArgumentReference:
    """One argument of a component."""

    name: str
    """Its name."""
    type: str
    """Its annotation, with the declared ranges left out: `int | None`."""
    default: str | None
    """Its default as the source spells it, of a field's factory the call; None for an argument that must be given."""
    range: str
    """The bounds of its numbers in words: `from 1 to 65_535`, those of several after one another; empty for none."""
    description: str
    """Its entry below `Args:`, or the docstring of its field; empty where it has none."""


@dataclass(frozen=True)
class ComponentReference:
    """One component."""

    target: str
    """Its dotted name, as `_target_` names it."""
    description: str
    """Its docstring without its sections, such as `Args:`."""
    arguments: tuple[ArgumentReference, ...]
    """Its arguments in order."""


def components(catalogue: Catalogue | None = None) -> Iterator[Located]:
    """Every component of the project and of the plugins, in the order of their names."""
    catalogue = catalogue or Catalogue()
    catalogue.make_plugins_importable()
    packages = [("framework", Path(__file__).resolve().parents[1])]
    packages += [(plugin.name, plugin.folder) for plugin in catalogue.plugins()]
    for package, folder in packages:
        for file in sorted(folder.rglob("*.py")):
            text = file.read_text(encoding="utf-8")
            if "@component" in text and "tests" not in file.relative_to(folder).parts:
                module = ".".join([package, *file.relative_to(folder).with_suffix("").parts])
                yield from _declared(module.removesuffix(".__init__"), text)


def _declared(module: str, text: str) -> Iterator[Located]:
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            located = locate(f"{module}.{node.name}")
            if declares_component(located):
                yield located


def describe_component(located: Located) -> ComponentReference:
    """The reference of one component."""
    described = _descriptions(located)
    docstring = inspect.cleandoc(_docstring(located.node))
    return ComponentReference(
        f"{located.module}.{located.qualname}",
        SECTION.split(docstring, maxsplit=1)[0].strip(),
        tuple(_argument(each, described.get(each.name, "")) for each in signature(located).parameters.values()),
    )


def _argument(parameter: Parameter, description: str) -> ArgumentReference:
    annotation, source = parameter.annotation, parameter.source
    ranges = list(dict.fromkeys(text for text in (*sizes(annotation, source), *numbers(annotation, source)) if text))
    spelled = "" if annotation is None else ast.unparse(_Plain(source).visit(copy.deepcopy(annotation)))
    default = None if parameter.default is None else _spelled(parameter.default)
    return ArgumentReference(parameter.name, spelled, default, "; ".join(ranges), description)


def _spelled(default: ast.expr) -> str:
    """A default as written, what a dataclass's `field` is given for one included: of a factory F the call F()."""
    if isinstance(default, ast.Call) and last_name(default.func) == "field":
        words = {word.arg: word.value for word in default.keywords}
        if "default" in words:
            return ast.unparse(words["default"])
        factory = words["default_factory"]
        return ast.unparse(factory.body if isinstance(factory, ast.Lambda) else ast.Call(factory, [], []))
    return ast.unparse(default)


def sizes(annotation: ast.expr | None, source: Module) -> Iterator[str]:
    """That a list or mapping of an annotation needs entries, in words."""
    match annotation:
        case ast.BinOp(left=left, right=right):
            yield from sizes(left, source)
            yield from sizes(right, source)
        case ast.Subscript(value=head, slice=ast.Tuple(elts=[_, *metadata])) if last_name(head) == "Annotated":
            if fewest(read_bounds(metadata, source)):
                yield "not empty"


def numbers(annotation: ast.expr | None, source: Module) -> Iterator[str]:
    """The range that each number in an annotation declares, in words; empty for one that declares none."""
    match annotation:
        case ast.Constant(value=str(text)):
            yield from numbers(ast.parse(text, mode="eval").body, source)
        case ast.BinOp(left=left, right=right):
            yield from numbers(left, source)
            yield from numbers(right, source)
        case ast.Subscript(value=head, slice=ast.Tuple(elts=[base, *metadata])) if last_name(head) == "Annotated":
            bounds = describe(read_bounds(metadata, source))
            yield from (bounds or inner for inner in numbers(base, source))
        case ast.Subscript(value=head, slice=inside) if last_name(head) not in ("Literal", "Callable"):
            for each in inside.elts if isinstance(inside, ast.Tuple) else [inside]:
                yield from numbers(each, source)
        case ast.Name() if annotation.id in NUMBERS:
            yield ""
        case ast.Name() | ast.Attribute() if last_name(annotation) not in SCALARS:
            alias = resolve_expression(annotation, source)
            if alias is not None and alias.source is not None and isinstance(alias.node, ast.Subscript | ast.BinOp):
                yield from numbers(alias.node, alias.source)


class _Plain(ast.NodeTransformer):
    """Replaces annotated types, and the names of such, by the plain type."""

    def __init__(self, source: Module) -> None:
        self.source = source

    def visit_Name(self, node: ast.Name) -> ast.AST:
        located = resolve_expression(node, self.source)
        aliased = located.node if located is not None else None
        if isinstance(aliased, ast.Subscript) and last_name(aliased.value) == "Annotated" and located is not None:
            assert located.source is not None
            return _Plain(located.source).visit(copy.deepcopy(aliased))
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if last_name(node.value) == "Annotated" and isinstance(node.slice, ast.Tuple):
            return self.visit(node.slice.elts[0])
        return self.generic_visit(node)


def _descriptions(located: Located) -> dict[str, str]:
    """The descriptions of the arguments: of a dataclass's fields, or the `Args:` of a docstring, bases included."""
    found: dict[str, str] = {}
    for base in reversed(list(base_classes(located)) if isinstance(located.node, ast.ClassDef) else [located]):
        if base is not None and isinstance(base.node, ast.ClassDef):
            for field, text in zip(base.node.body, base.node.body[1:], strict=False):
                match field, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                        found[name] = " ".join(words.split())
        if base is not None:
            found |= _args_section(inspect.cleandoc(_docstring(base.node)))
    return found


def _args_section(docstring: str) -> dict[str, str]:
    section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", docstring, re.MULTILINE)
    entries = re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", section[1], re.MULTILINE) if section else []
    return {name: " ".join(text.split()) for name, text in entries}


def _docstring(node: object) -> str:
    return ast.get_docstring(node) or "" if isinstance(node, ast.ClassDef | ast.FunctionDef) else ""
