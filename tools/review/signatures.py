"""Component signatures of a tree, read from its source without importing it."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

TARGET = re.compile(r"_target_:\s*['\"]?([A-Za-z_][\w.]*)")


def targets(yaml: Mapping[str, bytes]) -> set[str]:
    """The components that the YAML files of a tree name."""
    return {name for content in yaml.values() for name in TARGET.findall(content.decode("utf-8", "replace"))}


def signatures(source: Mapping[str, bytes]) -> dict[str, dict[str, str]]:
    """Of each top-level class and function, by dotted name: its arguments, each as `annotation = default`.

    A dataclass's arguments are its fields. Files that do not parse have no components.
    """
    functions = {}
    for path, content in source.items():
        module = path.removesuffix(".py").removesuffix("/__init__").removeprefix("plugins/").replace("/", ".")
        try:
            tree = ast.parse(content)
        except (SyntaxError, ValueError):
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                functions[f"{module}.{node.name}"] = _arguments(node)
    return functions


def _arguments(node: ast.ClassDef | ast.FunctionDef) -> dict[str, str]:
    if isinstance(node, ast.FunctionDef):
        return _of_function(node, skip=0)
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return _of_function(item, skip=1)
    return {
        item.target.id: _text(item.annotation, item.value)
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and not item.target.id.startswith("_")
    }


def _of_function(node: ast.FunctionDef, skip: int) -> dict[str, str]:
    positional = [*node.args.posonlyargs, *node.args.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(node.args.defaults))
    defaults += node.args.defaults
    pairs = [*zip(positional, defaults, strict=True)][skip:]
    pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    return {argument.arg: _text(argument.annotation, default) for argument, default in pairs}


def _text(annotation: ast.expr | None, default: ast.expr | None) -> str:
    written = ast.unparse(annotation) if annotation is not None else "any"
    return f"{written} = {ast.unparse(default)}" if default is not None else written


def changes(
    before: Mapping[str, dict[str, str]], after: Mapping[str, dict[str, str]], named: set[str]
) -> list[tuple[str, list[str]]]:
    """Each component of `named` that is new, gone or takes other arguments, with one line per difference."""
    result = []
    for name in sorted(named & (before.keys() | after.keys())):
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        if old is None:
            lines = ["new"] + [f"+ {key}: {text}" for key, text in (new or {}).items()]
        elif new is None:
            lines = ["removed"]
        else:
            lines = [f"- {key}: {old[key]}" for key in old if old[key] != new.get(key)]
            lines += [f"+ {key}: {new[key]}" for key in new if new[key] != old.get(key)]
        result.append((name, lines))
    return result
