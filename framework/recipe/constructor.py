"""What a constructor refuses, read from its source: `if low > high: raise ValueError(...)`.

A constructor says best which of its arguments do not go together, and says it too late: once everything is imported.
The check follows its statements as far as they depend on the recipe's plain values alone, functions of its module
included, and reports the error that it would raise. What it cannot follow it skips.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from framework.recipe.annotation import is_component
from framework.recipe.expression import MISSING, Instance, Scope, Unknown, bind, evaluate, items
from framework.recipe.layers import MISSING as UNSET
from framework.recipe.signature import (
    Located,
    Module,
    NoSuchTarget,
    base_classes,
    find_name,
    inherits,
    is_dataclass,
    locate,
    signature,
)


@dataclass(frozen=True)
class Refusal:
    """An error that a constructor would raise."""

    message: str
    """The error's message."""
    arguments: tuple[str, ...]
    """The arguments that the refusing statement reads, in order."""


class Refused(Exception):  # noqa: N818 - reads as what happened
    """A `raise` statement was reached."""


class Continued(Exception):  # noqa: N818 - reads as what happened
    """A `continue` statement was reached."""


class Returned(Exception):  # noqa: N818 - reads as what happened
    """A `return` statement was reached."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def refusal(located: Located, given: Mapping[str, Any]) -> Refusal | None:
    """Why calling `located` with the recipe's plain values `given` fails; None where it does not or nobody can tell."""
    if located.source is None:
        return None
    if isinstance(located.node, ast.FunctionDef):
        names = _arguments(located, given)
        return _run(located.node.body, Scope(located.source, names, _call), names)
    return Component(located, given).refusal if isinstance(located.node, ast.ClassDef) else None


class Component(Instance):
    """A component of the recipe: its class, and the attributes that its constructor sets.

    Args:
        located: The class.
        given: The recipe's plain values by argument.
    """

    def __init__(self, located: Located, given: Mapping[str, Any]) -> None:
        self.located = located
        self.given = given
        self.attributes: dict[str, Any] = {}
        self._asked = False

    @cached_property
    def refusal(self) -> Refusal | None:
        """The error that the constructor would raise. Asking sets the attributes."""
        self._asked = True
        arguments = _arguments(self.located, self.given)
        for base in filter(None, base_classes(self.located)):
            assert isinstance(base.node, ast.ClassDef)
            data = is_dataclass(base.node)
            if data and not self.attributes:
                self.attributes = dict(arguments)
            method = _method(base, "__post_init__" if data else "__init__")
            if method is not None and base.source is not None:
                names = {"self": self} if data else {"self": self} | arguments
                return _run(method.body, Scope(base.source, names, _call), arguments)
        return None

    def attribute(self, name: str) -> Any:
        """See `Instance`: what the constructor sets, a property makes, or the class says. A partial has `keywords`,
        and `func`, its class.
        """
        if name == "keywords" and self.given.get("_partial_") is True:
            return {key: _value(value) for key, value in self.given.items() if not key.startswith("_")}
        if name == "func" and self.given.get("_partial_") is True:
            return Component(self.located, {})
        if not self._asked:  # while the constructor runs it has what it has set so far
            _ = self.refusal
        if name in self.attributes:
            return self.attributes[name]
        for base in base_classes(self.located):
            method = _method(base, name) if base is not None else None
            if method is not None and base is not None and base.source is not None:
                if [ast.unparse(each) for each in method.decorator_list] == ["property"]:
                    return _result(method.body, Scope(base.source, {"self": self}, _call))
                break
            if base is not None and base.source is not None and (value := _class_value(base, name)) is not None:
                return evaluate(value, Scope(base.source, {}, _call))
        raise Unknown(name)

    def is_a(self, cls: Located) -> bool:
        """See `Instance`. Protocols are not judged."""
        if inherits(self.located, cls):
            return True
        if None in base_classes(self.located) or not isinstance(cls.node, ast.ClassDef):
            raise Unknown(cls.qualname)
        if any(ast.unparse(base).partition("[")[0].rpartition(".")[2] == "Protocol" for base in cls.node.bases):
            raise Unknown(cls.qualname)
        return False


def _method(owner: Located, name: str) -> ast.FunctionDef | None:
    body = owner.node.body if isinstance(owner.node, ast.ClassDef) else []
    return next((each for each in body if isinstance(each, ast.FunctionDef) and each.name == name), None)


def _class_value(owner: Located, name: str) -> ast.expr | None:
    """The value that a class gives `name` for all its instances; None where it gives none."""
    for each in owner.node.body if isinstance(owner.node, ast.ClassDef) else []:
        targets = (
            each.targets if isinstance(each, ast.Assign) else [each.target] if isinstance(each, ast.AnnAssign) else []
        )
        if isinstance(each, ast.Assign | ast.AnnAssign) and [ast.unparse(target) for target in targets] == [name]:
            return each.value
    return None


def _arguments(located: Located, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all arguments: the recipe's, else the defaults; `MISSING` where neither is known."""
    values = {}
    for name, parameter in signature(located).parameters.items():
        if name in given:
            values[name] = _value(given[name])
        else:
            values[name] = _default(parameter.default, parameter.source)
    return values


def _value(plain: Any) -> Any:
    """A value of the recipe as the constructor gets it."""
    if is_component(plain):
        try:
            located = locate(str(plain["_target_"]))
        except (NoSuchTarget, SyntaxError):
            return MISSING
        given = {str(name): value for name, value in plain.items() if name != "_target_"}
        return Component(located, given) if isinstance(located.node, ast.ClassDef) else MISSING
    if isinstance(plain, dict):
        return {name: _value(value) for name, value in plain.items()}
    if isinstance(plain, list):
        return [_value(value) for value in plain]
    return MISSING if plain == UNSET else plain


def _default(node: ast.expr | None, source: Module) -> Any:
    if node is None:
        return MISSING
    try:
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "field":
            options = {each.arg: each.value for each in node.keywords}
            factory = ast.unparse(options["default_factory"]) if "default_factory" in options else ""
            if factory in ("dict", "list"):
                return {} if factory == "dict" else []
            made = find_name(factory, source) if factory.isidentifier() else None
            if made is not None and isinstance(made.node, ast.ClassDef):
                return Component(made, {})
            node = options.get("default")
        return evaluate(node, Scope(source)) if node is not None else MISSING
    except Unknown:
        return MISSING


def _run(body: list[ast.stmt], scope: Scope, arguments: Mapping[str, Any]) -> Refusal | None:
    """The error that the statements of a constructor reach."""
    for statement in body:
        try:
            _execute(statement, scope)
        except Refused as error:
            read = dict.fromkeys(_names(statement))
            return Refusal(str(error), tuple(name for name in read if name in arguments))
        except (Returned, Unknown):
            return None
    return None


def _names(statement: ast.stmt) -> Iterable[str]:
    """The names, and the attributes of `self`, that a statement reads."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value  # getattr(self, name) for name in ("low", "high")


def _call(function: Located, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Follow a call of a function of the source."""
    if not isinstance(function.node, ast.FunctionDef) or function.source is None or "." in function.qualname:
        raise Unknown(function.qualname)
    takes = signature(function)
    given = dict(zip(takes.positional, args, strict=False)) | kwargs
    if len(args) > len(takes.positional) or takes.takes_any or takes.takes_more:
        raise Unknown(function.qualname)
    names = {
        name: given[name] if name in given else _default(each.default, each.source)
        for name, each in takes.parameters.items()
    }
    return _result(function.node.body, Scope(function.source, names, _call))


def _result(body: list[ast.stmt], scope: Scope) -> Any:
    try:
        _execute_all(body, scope)
    except Returned as returned:
        return returned.value
    return None


def _execute_all(body: list[ast.stmt], scope: Scope) -> None:
    for statement in body:
        _execute(statement, scope)


def _execute(statement: ast.stmt, scope: Scope) -> None:
    """Follow one statement. One that is not known makes the names that it sets unknown.

    Raises `Refused` and `Returned` where it ends the function, and `Unknown` where it may.
    """
    try:
        _follow(statement, scope)
    except Unknown:
        if any(isinstance(node, ast.Return | ast.Break | ast.Continue) for node in ast.walk(statement)):
            raise
        for node in ast.walk(statement):
            if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                _assign(node, MISSING, scope)


def _follow(statement: ast.stmt, scope: Scope) -> None:
    match statement:
        case ast.Assign(targets=[target], value=value) | ast.AnnAssign(target=target, value=ast.expr() as value):
            _assign(target, evaluate(value, scope), scope)
        case ast.If(test=test, body=body, orelse=other):
            _execute_all(body if evaluate(test, scope) else other, scope)
        case ast.For(target=target, iter=iterable, body=body, orelse=[]):
            for item in items(evaluate(iterable, scope)):
                scope.names.update(bind(target, item))
                try:
                    _execute_all(body, scope)
                except Continued:
                    continue
        case ast.Raise(exc=ast.Call(args=[message, *_])):
            raise Refused(_message(message, scope))
        case ast.Return(value=value):
            raise Returned(None if value is None else evaluate(value, scope))
        case ast.Continue():
            raise Continued
        case ast.Expr(value=value):
            evaluate(value, scope)
        case ast.Pass():
            pass
        case _:
            raise Unknown(type(statement).__name__)


def _assign(target: ast.expr, value: Any, scope: Scope) -> None:
    match target:
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            owner = scope.names.get("self")
            if isinstance(owner, Component):
                owner.attributes[name] = value
        case ast.Tuple(elts=elements) if value is MISSING:
            for each in elements:
                _assign(each, MISSING, scope)
        case ast.Tuple(elts=elements):
            for each, part in zip(elements, items(value), strict=True):
                _assign(each, part, scope)
        case ast.Name(id=name):
            scope.names[name] = value


def _message(node: ast.expr, scope: Scope) -> str:
    """The error's message; the parts of it that are not known stay as they are written."""
    if not isinstance(node, ast.JoinedStr):
        return str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node)
    text = ""
    for part in node.values:
        try:
            text += str(evaluate(ast.JoinedStr([part]), scope))
        except Unknown:
            text += ast.unparse(part.value) if isinstance(part, ast.FormattedValue) else ""
    return text
