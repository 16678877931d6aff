"""Writes classes of this repository as one file of code that needs nothing of it.

The file is made of the modules' own text, so that there is no second copy to keep. A module that is imported from is
brought along; constants become literals; what only the recipe's check reads (`@component`, ranges of numbers) is left
out.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, get_args

OURS = "framework"
OPTIONAL = ("PIL",)
"""Packages that the file imports where they are installed: only what uses them needs them."""
MARK = "component"
"""The decorator that only the recipe's check reads."""


def standalone(classes: Iterable[type], title: str, own: Callable[[str], bool] | None = None) -> str:
    """The text of a module that defines `classes` and all of ours that they use.

    Args:
        classes: The classes, each of a module on its own or with others.
        title: The first line of the file's docstring.
        own: Whether a module, by name, is brought along instead of imported (default: those of this package, and the
            classes' own).

    Raises `ValueError` for something imported from us that is neither code nor a constant, and where two modules define
    the same name.
    """
    wanted = list(classes)
    modules = {each.__module__ for each in wanted}
    writer = _Writer(own or (lambda name: name.split(".")[0] == OURS or name in modules))
    for each in wanted:
        writer.add(sys.modules[each.__module__])
    _refuse_clashes(writer.pieces)
    used = set(re.findall(r"\w+", "\n".join(writer.pieces)))
    lines = [line for line in writer.imports if line.split()[-1].split(".")[0] in used]
    ordered = sorted(lines, key=lambda line: (not line.startswith("import"), line))
    optional = [line for line in ordered if line.split()[1].split(".")[0] in OPTIONAL]
    imports = "\n".join(line for line in ordered if line not in optional)
    if optional:  # `transformers` refuses a file whose imports are not installed, but looks into no `try`
        imports += "\n\ntry:\n    " + "\n    ".join(optional) + "\nexcept ImportError:\n    pass"
    head = f'"""{title}\n\nGenerated from the training framework; do not edit.\n"""'
    return "\n\n".join([head, "from __future__ import annotations", imports, *writer.pieces]) + "\n"


class _Writer:
    """Collects the pieces of modules, each module after those that it uses."""

    def __init__(self, own: Callable[[str], bool]) -> None:
        self.own = own
        self.imports: set[str] = set()
        self.pieces: list[str] = []
        self._seen: set[str] = set()

    def add(self, module: ModuleType) -> None:
        """Bring `module` along, once."""
        if module.__name__ in self._seen:
            return
        self._seen.add(module.__name__)
        text = inspect.getsource(module)
        tree = ast.parse(text)
        plain: dict[str, str] = {}
        body: list[ast.stmt] = []
        for statement in tree.body:
            if isinstance(statement, ast.ImportFrom) and self.own(statement.module or ""):
                plain |= self._bring(statement)
            elif isinstance(statement, ast.Import | ast.ImportFrom):
                self._import(statement)
            elif not _is_for_types_alone(statement):
                body.append(statement)
        lines = text.splitlines()
        docstring = ast.get_docstring(tree, clean=True)
        heading = f"# {module.__name__}: {docstring.splitlines()[0] if docstring else ''}".rstrip()
        pieces = [_text(lines, each, plain) for each in body if not _is_docstring(each, tree)]
        self.pieces.append("\n\n".join([heading, *(piece for piece in pieces if piece)]))

    def _bring(self, statement: ast.ImportFrom) -> dict[str, str]:
        """Bring along what a statement imports from us. Returns names of ranges with the types that they narrow."""
        plain = {}
        module = sys.modules[str(statement.module)]
        for alias in statement.names:
            value = getattr(module, alias.name)
            if alias.name == MARK:
                continue
            if hasattr(value, "__metadata__"):  # an Annotated type: a range
                plain[alias.name] = get_args(value)[0].__name__
            elif inspect.isclass(value) or inspect.isfunction(value):
                self.add(sys.modules[value.__module__])
            elif _is_literal(value):
                piece = f"{alias.asname or alias.name} = {value!r}"
                self.pieces += [] if piece in self.pieces else [piece]
            else:
                raise ValueError(f"{statement.module}.{alias.name}: is neither code nor a constant, which files hold")
        return plain

    def _import(self, statement: ast.Import | ast.ImportFrom) -> None:
        if isinstance(statement, ast.ImportFrom) and statement.module in ("__future__", "annotated_types"):
            return
        if isinstance(statement, ast.ImportFrom):
            self.imports |= {f"from {statement.module} import {ast.unparse(alias)}" for alias in statement.names}
        else:
            self.imports |= {f"import {ast.unparse(alias)}" for alias in statement.names}


def _refuse_clashes(pieces: Iterable[str]) -> None:
    """Raise `ValueError` where the modules would hide each other's names in one file."""
    names: Counter[str] = Counter()
    for statement in ast.parse("\n".join(pieces)).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        names.update(each.id for each in targets if isinstance(each, ast.Name))
        names.update([statement.name] if isinstance(statement, ast.ClassDef | ast.FunctionDef) else [])
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"{', '.join(twice)}: several of the modules of one file define it; rename all but one")


def _is_literal(value: Any) -> bool:
    return isinstance(value, str | int | float | tuple) and ast.literal_eval(repr(value)) == value


def _is_for_types_alone(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING"


def _is_docstring(statement: ast.stmt, tree: ast.Module) -> bool:
    return statement is tree.body[0] and isinstance(statement, ast.Expr)


def _text(lines: list[str], statement: ast.stmt, plain: dict[str, str]) -> str:
    """A statement's own text, without the mark of a component and with plain types for ranges."""
    edits: list[tuple[int, int, int, int, str]] = []
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and node.id in plain:
            edits.append((*_span(node), plain[node.id]))
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Annotated":
            first = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
            edits.append((*_span(node), ast.unparse(first)))
    decorators = getattr(statement, "decorator_list", [])
    first = min([statement.lineno, *(each.lineno for each in decorators)])
    own = lines[first - 1 : statement.end_lineno]
    for line, start, end_line, end, text in sorted(edits, reverse=True):
        before, after = own[line - first].encode()[:start], own[end_line - first].encode()[end:]
        own[line - first : end_line - first + 1] = [before.decode() + text + after.decode()]
    return "\n".join(line for line in own if line.strip() != f"@{MARK}")


def _span(node: ast.expr) -> tuple[int, int, int, int]:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return node.lineno, node.col_offset, node.end_lineno, node.end_col_offset
