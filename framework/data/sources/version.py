"""The version of the code that reads a dataset: a hash of its module and of the modules that it imports."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

ROOM = __name__.rpartition(".")[0]


@functools.cache
def code_version(of: type) -> str:
    """Returns a hash of the source that `of` is defined in, and of all it imports from this package and from its own,
    directly or not. So changed code does not read old shards. Raises `OSError` where the source cannot be read.
    """
    packages = (ROOM, of.__module__.rpartition(".")[0] or of.__module__)
    sources: dict[str, bytes] = {}
    waiting = [of.__module__]
    while waiting:
        name = waiting.pop()
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise OSError(f"{name}: the module of {of.__qualname__} has no source file; define it in one")
        sources[name] = _source(Path(spec.origin))
        imported = _imports(name, ast.parse(sources[name]), is_package=spec.submodule_search_locations is not None)
        within = {each for each in imported if each.startswith(tuple(f"{package}." for package in packages))}
        waiting += [each for each in within - sources.keys() if each not in waiting and _is_module(each)]
    return hashlib.sha256(b"".join(sources[name] for name in sorted(sources))).hexdigest()[:12]


def _source(path: Path) -> bytes:
    return path.read_bytes()


def _imports(name: str, tree: ast.Module, is_package: bool) -> Iterator[str]:
    """Yields the absolute names that a module imports: modules, and what may be one."""
    parents = name.split(".") if is_package else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is a module, not a package
        return False
