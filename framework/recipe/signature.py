"""The arguments of a target, read from its source file without importing it or its packages.

The look-up follows re-exports (`from .adamw import AdamW`, also below `if TYPE_CHECKING:`), so that a check takes
milliseconds and no torch. A signature that cannot be read this way (compiled modules, computed signatures) is open: it
accepts any argument.
"""

from __future__ import annotations

import ast
import atexit
import gc
import importlib.machinery
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

COMPONENT_MODULE = "framework.recipe.component"
"""Where the mark of a component is defined."""

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.expr


class NoSuchTarget(LookupError):  # noqa: N818 - reads as what happened
    """A dotted name that does not exist: `name`, after `prefix`. `candidates` are the names that exist there."""

    def __init__(self, message: str, name: str, prefix: str, candidates: Iterable[str]) -> None:
        super().__init__(message)
        self.name = name
        self.prefix = prefix
        self.candidates = tuple(candidates)


@dataclass
class Module:
    """A parsed source file."""

    name: str
    """The module's dotted name."""
    file: Path
    """Its source file."""
    is_package: bool
    """Whether the file is a package's `__init__.py`."""
    definitions: dict[str, Definition] = field(default_factory=dict)
    """What it defines, by name."""
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    """What it imports, by local name: the module, and the attribute (None for the module itself)."""
    stars: list[str] = field(default_factory=list)
    """Modules that it imports with a star."""

    def absolute(self, module: str | None, level: int) -> str:
        """The absolute name of `from <level dots><module> import ...` in this file."""
        if level == 0:
            return module or ""
        package = self.name.split(".") if self.is_package else self.name.split(".")[:-1]
        base = package[: len(package) - (level - 1)]
        return ".".join([*base, *([module] if module else [])])


@dataclass(frozen=True)
class Located:
    """Where a name is defined, past all re-exports."""

    module: str
    """The defining module."""
    qualname: str
    """The name inside that module."""
    node: Definition | None
    """The definition; None where the source cannot be read."""
    source: Module | None = None
    """The parsed module; None where the source cannot be read."""


@dataclass(frozen=True)
class Parameter:
    """An argument of a target."""

    name: str
    """The argument's name."""
    annotation: ast.expr | None
    """Its annotation; None where it has none."""
    default: ast.expr | None
    """Its default; None where it must be given."""
    source: Module
    """The module in which the annotation's names are looked up."""

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is None


@dataclass(frozen=True)
class Signature:
    """The arguments of a target."""

    parameters: dict[str, Parameter]
    """The arguments by name, in order."""
    positional: tuple[str, ...] = ()
    """Names of those that can also be given by position."""
    takes_any: bool = False
    """Whether it accepts any other name (`**kwargs`)."""
    takes_more: bool = False
    """Whether it accepts any number of positions (`*args`)."""


OPEN = Signature({}, takes_any=True, takes_more=True)
"""The signature of what cannot be read."""


@cache
def find_spec(name: str) -> importlib.machinery.ModuleSpec | None:
    """The spec of a module, found through its parents' folders without importing them."""
    path: list[str] | None = None
    spec = None
    walked = ""
    for part in name.split("."):
        walked = f"{walked}.{part}" if walked else part
        spec = next((candidate for finder in sys.meta_path if (candidate := finder.find_spec(walked, path))), None)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations) if spec.submodule_search_locations is not None else []
    return spec


atexit.register(gc.unfreeze)  # at exit, libraries report objects that are still frozen as leaked


@cache
def read_module(name: str) -> Module | None:
    """The parsed source of module `name`; None where it has none that can be read. Raises `SyntaxError`."""
    spec = find_spec(name)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    file = Path(spec.origin)
    module = Module(name, file, spec.submodule_search_locations is not None)
    enabled = gc.isenabled()
    gc.disable()  # a syntax tree is many objects and no garbage: collections took a third of a check
    try:
        _collect(ast.parse(file.read_bytes(), str(file)).body, module)
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
    return module


def _collect(body: Iterable[ast.stmt], module: Module) -> None:
    for statement in body:
        match statement:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                module.definitions[name] = statement
            case ast.Assign(targets=targets, value=value):
                module.definitions |= {target.id: value for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                module.definitions[name] = value
            case ast.Import(names=names):
                for alias in names:
                    module.imports[alias.asname or alias.name.partition(".")[0]] = (
                        alias.name if alias.asname else alias.name.partition(".")[0],
                        None,
                    )
            case ast.ImportFrom(module=source, names=names, level=level):
                origin = module.absolute(source, level)
                for alias in names:
                    if alias.name == "*":
                        module.stars.append(origin)
                    else:
                        module.imports[alias.asname or alias.name] = (origin, alias.name)
            case ast.If(body=inner, orelse=other):
                _collect([*other, *inner], module)
            case ast.Try(body=inner, handlers=handlers, orelse=other, finalbody=last):
                for handler in handlers:
                    _collect(handler.body, module)
                _collect([*inner, *other, *last], module)


def locate(target: str) -> Located:
    """Where the dotted name `target` is defined, past all re-exports. Raises `NoSuchTarget`."""
    parts = target.split(".")
    if not all(part.isidentifier() for part in parts):
        raise NoSuchTarget(f"'{target}' is not a dotted name", target, "", ())
    depth = 0
    while depth < len(parts) and find_spec(".".join(parts[: depth + 1])) is not None:
        depth += 1
    if depth == 0:
        raise NoSuchTarget(f"there is no module '{parts[0]}'", parts[0], "", sorted(_top_level_names()))
    is_module = depth == len(parts)
    depth = max(1, depth - 1) if is_module else depth
    module, rest = ".".join(parts[:depth]), parts[depth:]
    located = _lookup(module, rest[0], frozenset()) if rest else None
    if located is None and is_module:
        raise NoSuchTarget(f"'{target}' is a module, not a class or function", "", f"{target}.", ())
    if located is None:
        raise NoSuchTarget(f"'{module}' has no '{rest[0]}'", rest[0], f"{module}.", _public_names(module))
    for name in rest[1:]:
        located = _attribute(located, name)
    return located


def _lookup(module: str, name: str, seen: frozenset[tuple[str, str]]) -> Located | None:
    if (module, name) in seen:
        return None
    seen = seen | {(module, name)}
    source = read_module(module)
    if source is None:
        return Located(module, name, None) if find_spec(module) is not None else None
    if name in source.definitions:
        node = source.definitions[name]
        if isinstance(node, ast.Name) and node.id != name:
            return _lookup(module, node.id, seen) or Located(module, name, node, source)
        return Located(module, name, node, source)
    if name in source.imports:
        origin, attribute = source.imports[name]
        if attribute is None:
            return None
        return _lookup(origin, attribute, seen) or _unreadable(origin, attribute)
    for star in reversed(source.stars):
        located = _lookup(star, name, seen)
        if located is not None and located.node is not None:
            return located
    if "__getattr__" in source.definitions:
        return Located(module, name, None, source)
    return None


def _unreadable(module: str, name: str) -> Located | None:
    return Located(module, name, None) if find_spec(module) is None or read_module(module) is None else None


def _attribute(owner: Located, name: str) -> Located:
    qualname = f"{owner.qualname}.{name}"
    if not isinstance(owner.node, ast.ClassDef) or owner.source is None:
        return Located(owner.module, qualname, None)
    for base in base_classes(owner):
        if base is None:
            return Located(owner.module, qualname, None)
        for statement in base.node.body if isinstance(base.node, ast.ClassDef) else []:
            if isinstance(statement, ast.FunctionDef | ast.ClassDef) and statement.name == name:
                return Located(base.module, qualname, statement, base.source)
    names = [statement.name for statement in owner.node.body if isinstance(statement, ast.FunctionDef)]
    prefix = f"{owner.module}.{owner.qualname}."
    raise NoSuchTarget(f"'{owner.qualname}' has no '{name}'", name, prefix, [each for each in names if each[0] != "_"])


def _public_names(module: str) -> set[str]:
    source, spec = read_module(module), find_spec(module)
    names = set(source.definitions) | set(source.imports) if source else set()
    for star in source.stars if source else ():
        names |= _public_names(star)
    if spec and spec.submodule_search_locations:
        names |= {info.name for info in pkgutil.iter_modules(list(spec.submodule_search_locations))}
    return {name for name in names if not name.startswith("_")}


def _top_level_names() -> set[str]:
    return {info.name for info in pkgutil.iter_modules() if not info.name.startswith("_")}


def find_name(name: str, source: Module) -> Located | None:
    """Where `name`, as used inside `source`, is defined; None for built-ins and unknown names."""
    return _lookup(source.name, name, frozenset())


def base_classes(owner: Located) -> Iterator[Located | None]:
    """The class and its bases, depth first; None stands for a base that cannot be read. The file of a base is read when
    it is asked for.
    """
    yield owner
    assert isinstance(owner.node, ast.ClassDef)
    for base in owner.node.bases:
        expression = base.value if isinstance(base, ast.Subscript) else base
        text = ast.unparse(expression)
        if text.rpartition(".")[2] in ("object", "Protocol", "Generic", "ABC"):
            continue
        located = resolve_expression(expression, owner.source)
        if located is not None and isinstance(located.node, ast.ClassDef):
            yield from base_classes(located)
        else:
            yield None


def inherits(owner: Located, cls: Located) -> bool:
    """Whether the class `owner` is `cls` or derives from it, as far as its bases can be read."""
    return any((base.module, base.qualname) == (cls.module, cls.qualname) for base in base_classes(owner) if base)


def resolve_expression(expression: ast.expr, source: Module | None) -> Located | None:
    """Where the name or dotted name `expression` of `source` is defined; None where that is unknown."""
    if source is None or not isinstance(expression, ast.Name | ast.Attribute):
        return None
    head, *rest = ast.unparse(expression).split(".")
    if not rest:
        return find_name(head, source)
    origin, attribute = source.imports.get(head, (None, None))
    if origin is None:
        return None
    try:
        return locate(".".join([origin, *([attribute] if attribute else []), *rest]))
    except NoSuchTarget:
        return None


def declares_component(located: Located) -> bool:
    """Whether the source decorates what is located with `framework.recipe.component.component`."""
    if not isinstance(located.node, ast.ClassDef | ast.FunctionDef):
        return False
    marks = [resolve_expression(each, located.source) for each in located.node.decorator_list]
    mark = (COMPONENT_MODULE, "component")
    return any(each is not None and (each.module, each.qualname) == mark for each in marks)


def signature(located: Located) -> Signature:
    """The arguments that calling `located` takes."""
    if located.source is None or located.node is None:
        return OPEN
    if isinstance(located.node, ast.FunctionDef | ast.AsyncFunctionDef):
        decorators = {ast.unparse(each) for each in located.node.decorator_list}
        bound = "." in located.qualname and "staticmethod" not in decorators
        return _of_function(located.node, located.source, skip_first=bound)
    if isinstance(located.node, ast.ClassDef):
        return _of_class(located)
    return OPEN


def _of_function(node: ast.FunctionDef | ast.AsyncFunctionDef, source: Module, skip_first: bool) -> Signature:
    spec = node.args
    positional = [*spec.posonlyargs, *spec.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(spec.defaults)) + list(spec.defaults)
    pairs = list(zip(positional, defaults, strict=True))[1 if skip_first else 0 :]
    keyword = list(zip(spec.kwonlyargs, spec.kw_defaults, strict=True))
    parameters = {
        argument.arg: Parameter(argument.arg, argument.annotation, default, source)
        for argument, default in [*pairs, *keyword]
    }
    names = tuple(argument.arg for argument, _ in pairs)
    return Signature(parameters, names, spec.kwarg is not None, spec.vararg is not None)


def _of_class(located: Located) -> Signature:
    for base in base_classes(located):
        if base is None:
            return OPEN
        assert isinstance(base.node, ast.ClassDef)
        assert base.source is not None
        for statement in reversed(base.node.body):
            if isinstance(statement, ast.FunctionDef) and statement.name in ("__init__", "__new__"):
                return _of_function(statement, base.source, skip_first=True)
        if is_dataclass(base.node):
            return _of_dataclass(base)
        if any(ast.unparse(each).rpartition(".")[2] in ("NamedTuple", "TypedDict") for each in base.node.bases):
            return Signature(_fields(base))
    return Signature({})


def is_dataclass(node: ast.ClassDef) -> bool:
    """Whether the class has the decorator `dataclass`."""
    return any(ast.unparse(each).partition("(")[0].rpartition(".")[2] == "dataclass" for each in node.decorator_list)


def _of_dataclass(located: Located) -> Signature:
    parameters: dict[str, Parameter] = {}
    for base in reversed(list(base_classes(located))):
        if base is None:
            return OPEN
        if isinstance(base.node, ast.ClassDef) and is_dataclass(base.node):
            parameters |= _fields(base)
    return Signature(parameters, tuple(parameters))


def _fields(located: Located) -> dict[str, Parameter]:
    assert isinstance(located.node, ast.ClassDef)
    assert located.source is not None
    fields: dict[str, Parameter] = {}
    for statement in located.node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            value = statement.value
            made_by_field = isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] == "field"
            options = (
                {each.arg: each.value for each in value.keywords}
                if isinstance(value, ast.Call) and made_by_field
                else {}
            )
            init = options.get("init")
            if (isinstance(init, ast.Constant) and init.value is False) or "ClassVar" in ast.unparse(
                statement.annotation
            ):
                continue
            default = value if not made_by_field or options.keys() & {"default", "default_factory"} else None
            fields[statement.target.id] = Parameter(statement.target.id, statement.annotation, default, located.source)
    return fields
