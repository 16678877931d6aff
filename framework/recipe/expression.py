"""Evaluates expressions of a source file without importing it: bounds, defaults, and what a constructor compares.

The values are plain ones: numbers, text, lists, mappings, and `Instance` for a component. Only operators and a few
functions that are harmless are known; whatever else an expression needs is `Unknown`. Numbers stay small and loops
short, so that no source can keep the check busy.
"""

from __future__ import annotations

import ast
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from framework.recipe.signature import Located, Module, find_name


class Unknown(Exception):  # noqa: N818 - reads as what happened
    """The value cannot be told without running the source."""


class Missing:
    """Stands for a value that is not known."""


MISSING = Missing()
MAX_DEPTH, MAX_ITEMS, MAX_NUMBER = 30, 10_000, 1e30
ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
SET_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Sub: operator.sub,
    ast.BitOr: operator.or_,
    ast.BitAnd: operator.and_,
    ast.BitXor: operator.xor,
}
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda one, many: one in many,
    ast.NotIn: lambda one, many: one not in many,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (len, min, max, abs, round, sorted, set, frozenset, list, tuple, dict, sum, any, all, zip, enumerate)
} | {"math.isqrt": math.isqrt, "math.isfinite": math.isfinite, "math.isnan": math.isnan, "int": int, "float": float}
FUNCTIONS["dict.fromkeys"] = dict.fromkeys
CONSTANTS = {"math.inf": math.inf, "math.pi": math.pi, "math.nan": math.nan}
METHODS: dict[str, type[Any]] = {
    "items": dict,
    "keys": dict,
    "values": dict,
    "get": dict,
    "join": str,
    "partition": str,
}
TYPES: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "list": list,
    "tuple": tuple,
    "dict": dict,
    "Mapping": Mapping,
    "Sequence": Sequence,
}


class Instance(ABC):
    """A component of the recipe, as far as its source tells."""

    @abstractmethod
    def attribute(self, name: str) -> Any:
        """Its attribute `name`. Raises `Unknown`."""

    @abstractmethod
    def is_a(self, cls: Located) -> bool:
        """Whether it is an instance of `cls`. Raises `Unknown`."""


Calls = Callable[[Located, list[Any], dict[str, Any]], Any]
"""Calls a function of the source with arguments by position and by name. May raise `Unknown`."""


def no_calls(function: Located, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Knows no function of the source."""
    raise Unknown(function.qualname)


@dataclass
class Scope:
    """The names that an expression may use."""

    source: Module
    """The module, whose own names may be used, too."""
    names: dict[str, Any] = field(default_factory=dict)
    """Values by local name; `MISSING` for those that are not known."""
    calls: Calls = no_calls
    """Calls the source's functions."""
    depth: int = 0
    """How many names and calls of the source were followed."""

    def inside(self, source: Module, names: dict[str, Any]) -> Scope:
        """The scope of a function or constant that this one uses."""
        if self.depth >= MAX_DEPTH:
            raise Unknown("too deep")
        return Scope(source, names, self.calls, self.depth + 1)


def evaluate(node: ast.expr, scope: Scope) -> Any:
    """The value of `node`. Raises `Unknown`."""
    try:
        return _evaluate(node, scope)
    except (ArithmeticError, TypeError, ValueError, KeyError, IndexError, RecursionError) as error:
        raise Unknown(str(error)) from error


def _evaluate(node: ast.expr, scope: Scope) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return _name(name, scope)
        case ast.Attribute(value=owner, attr=name):
            dotted = ast.unparse(node)
            return CONSTANTS[dotted] if dotted in CONSTANTS else _attribute(_evaluate(owner, scope), name)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _evaluate(operand, scope)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, scope)
        case ast.BinOp(left=left, op=op, right=right):
            return _operation(_evaluate(left, scope), op, _evaluate(right, scope))
        case ast.BoolOp(op=op, values=values):
            return _boolean(isinstance(op, ast.And), values, scope)
        case ast.Compare():
            return _comparison(node, scope)
        case ast.IfExp(test=test, body=body, orelse=other):
            return _evaluate(body if _evaluate(test, scope) else other, scope)
        case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Set(elts=elements):
            made = [value for each in elements for value in _spread(each, scope)]
            return made if isinstance(node, ast.List) else tuple(made) if isinstance(node, ast.Tuple) else set(made)
        case ast.Dict(keys=keys, values=values) if None not in keys:
            pairs = zip(keys, values, strict=True)
            return {_evaluate(key, scope): _known(value, scope) for key, value in pairs if key is not None}
        case ast.Subscript(value=owner, slice=index) if not isinstance(index, ast.Slice):
            return _evaluate(owner, scope)[_evaluate(index, scope)]
        case ast.JoinedStr(values=parts):
            return "".join(_text(part, scope) for part in parts)
        case ast.Call():
            return _call(node, scope)
        case ast.GeneratorExp(elt=element) | ast.ListComp(elt=element):
            return [_evaluate(element, each) for each in _loops(node.generators, scope)]
        case ast.SetComp(elt=element):
            return {_evaluate(element, each) for each in _loops(node.generators, scope)}
        case ast.DictComp(key=key, value=value):
            return {_evaluate(key, each): _evaluate(value, each) for each in _loops(node.generators, scope)}
    raise Unknown(ast.unparse(node))


def _spread(element: ast.expr, scope: Scope) -> list[Any]:
    """The values of an element of a list: one, or those that `*` spreads."""
    return items(_evaluate(element.value, scope)) if isinstance(element, ast.Starred) else [_evaluate(element, scope)]


def _known(node: ast.expr, scope: Scope) -> Any:
    """The value of `node`, or `MISSING`: the keys of a mapping matter also where its values are not known."""
    try:
        return evaluate(node, scope)
    except Unknown:
        return MISSING


def _name(name: str, scope: Scope) -> Any:
    if name in scope.names:
        value = scope.names[name]
        if value is MISSING:
            raise Unknown(name)
        return value
    located = _followed(name, scope.source)
    if located is None or located.source is None or not isinstance(located.node, ast.expr):
        raise Unknown(name)
    return _evaluate(located.node, scope.inside(located.source, {}))


def _attribute(owner: Any, name: str) -> Any:
    if not isinstance(owner, Instance):
        raise Unknown(name)
    value = owner.attribute(name)
    if value is MISSING:
        raise Unknown(name)
    return value


def _operation(left: Any, op: ast.operator, right: Any) -> Any:
    if isinstance(left, set | frozenset) and isinstance(right, set | frozenset) and type(op) in SET_OPERATORS:
        return SET_OPERATORS[type(op)](left, right)
    if isinstance(left, tuple) and isinstance(right, tuple) and isinstance(op, ast.Add):
        return (*left, *right)
    if not all(isinstance(side, int | float) and not abs(side) > MAX_NUMBER for side in (left, right)):
        raise Unknown("no numbers, or large ones")
    if isinstance(op, ast.LShift) and right <= 64:
        return left << right
    if type(op) not in ARITHMETIC:
        raise Unknown(type(op).__name__)
    return ARITHMETIC[type(op)](left, right)


def _boolean(every: bool, values: list[ast.expr], scope: Scope) -> Any:
    """`and` or `or`. An operand that is not known does not matter where another decides alone."""
    result, unknown = None, None
    for value in values:
        try:
            result = _evaluate(value, scope)
        except (Unknown, TypeError) as error:
            unknown = error
            continue
        if bool(result) is not every:
            return result
    if unknown is not None:
        raise Unknown(str(unknown)) from unknown
    return result


def _comparison(node: ast.Compare, scope: Scope) -> bool:
    left = _evaluate(node.left, scope)
    for op, right_node in zip(node.ops, node.comparators, strict=True):
        right = _evaluate(right_node, scope)
        if not COMPARISONS[type(op)](left, right):
            return False
        left = right
    return True


def _text(part: ast.expr, scope: Scope) -> str:
    match part:
        case ast.FormattedValue(value=value, conversion=conversion, format_spec=None | ast.JoinedStr() as spec):
            shown = _evaluate(value, scope)
            if conversion == ord("r"):
                shown = repr(shown)
            form = _text(spec.values[0], scope) if spec is not None and spec.values else ""
            if len(form) > 4:
                raise Unknown("a long format")
            return format(shown, form)
    return str(_evaluate(part, scope))


def _call(node: ast.Call, scope: Scope) -> Any:
    name = ast.unparse(node.func)
    if name in ("isinstance", "getattr") and len(node.args) == 2 and name not in scope.names:
        owner = _evaluate(node.args[0], scope)
        if name == "getattr":
            return _attribute(owner, _evaluate(node.args[1], scope))
        return _is_instance(owner, node.args[1], scope)
    args = [_evaluate(each, scope) for each in node.args]
    kwargs = {each.arg: _evaluate(each.value, scope) for each in node.keywords if each.arg is not None}
    if name in FUNCTIONS and name.partition(".")[0] not in scope.names:
        return FUNCTIONS[name](*args, **kwargs)
    if isinstance(node.func, ast.Attribute):
        owner, method = _evaluate(node.func.value, scope), node.func.attr
        if method not in METHODS or not isinstance(owner, METHODS[method]):
            raise Unknown(name)
        result = getattr(owner, method)(*args, **kwargs)
        return result if method in ("get", "join") else list(result)
    if isinstance(node.func, ast.Name) and (located := _followed(name, scope.source)) is not None:
        return scope.calls(located, args, kwargs)
    raise Unknown(name)


def _followed(name: str, source: Module) -> Located | None:
    """Where `name` is defined; None where `source` imports it from a library: those are large, and nothing that a
    constructor compares lies there.
    """
    package = source.imports.get(name, (source.name,))[0].partition(".")[0]
    own = (source.name.partition(".")[0], __name__.partition(".")[0])
    return find_name(name, source) if package in own else None


def _is_instance(value: Any, kinds: ast.expr, scope: Scope) -> bool:
    if isinstance(kinds, ast.BinOp):
        return _is_instance(value, kinds.left, scope) or _is_instance(value, kinds.right, scope)
    for option in kinds.elts if isinstance(kinds, ast.Tuple) else [kinds]:
        name = ast.unparse(option)
        if name in TYPES:
            matches = isinstance(value, TYPES[name])
        else:
            located = find_name(name, scope.source)
            if located is None:
                raise Unknown(name)
            matches = isinstance(value, Instance) and value.is_a(located)
        if matches:
            return True
    return False


def _loops(generators: list[ast.comprehension], scope: Scope) -> Iterator[Scope]:
    if not generators:
        yield scope
        return
    first, *rest = generators
    for item in items(_evaluate(first.iter, scope)):
        inner = Scope(scope.source, scope.names | dict(bind(first.target, item)), scope.calls, scope.depth)
        if all(_evaluate(test, inner) for test in first.ifs):
            yield from _loops(rest, inner)


def items(values: Any) -> list[Any]:
    """The values of an iterable, which must be short. Raises `Unknown`."""
    if not isinstance(values, dict | list | tuple | set | frozenset | zip | enumerate):
        raise Unknown("not a container")
    listed = list(values)
    if len(listed) > MAX_ITEMS:
        raise Unknown("a long loop")
    return listed


def bind(target: ast.expr, value: Any) -> Iterator[tuple[str, Any]]:
    """The names that an assignment of `value` to `target` sets."""
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, ast.Tuple | ast.List):
        values = items(value)
        if len(values) != len(target.elts):
            raise Unknown("unequal lengths")
        for inner, each in zip(target.elts, values, strict=True):
            yield from bind(inner, each)
