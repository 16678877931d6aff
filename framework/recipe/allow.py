"""The targets that a recipe may name. The list is short: a recipe is data from a pull request, not a program.

Allowed are what this project and the plugins that the recipe enables (`plugins: [name]`) declare as components
(`framework.recipe.component`), and, from the libraries below, what the lists name. A target is judged twice, by its
written name and by the place of its definition. So `framework.some.module.system`, imported there from `os`, is refused
like `os.system` itself.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from framework.recipe.component import is_declared

OWN = "framework"

CLASSES_OF = (
    "torch.optim",
    "torch.nn.modules",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.profilers",
    "torchmetrics",
)
"""Packages whose public classes may be targets, by where the class is defined."""

WRITTEN = (*CLASSES_OF, "torch.nn", "transformers.optimization", "transformers")
"""Packages through which the objects of the two lists may be named."""

FUNCTIONS = frozenset(
    f"transformers.optimization.get_{name}"
    for name in (
        "constant_schedule",
        "constant_schedule_with_warmup",
        "linear_schedule_with_warmup",
        "cosine_schedule_with_warmup",
        "cosine_with_hard_restarts_schedule_with_warmup",
        "cosine_with_min_lr_schedule_with_warmup",
        "polynomial_decay_schedule_with_warmup",
        "inverse_sqrt_schedule",
        "wsd_schedule",
    )
)
"""Functions of libraries that may be targets, by where they are defined."""


def _within(name: str, packages: Iterable[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def refusal(target: str, plugins: Iterable[str]) -> str | None:
    """Why the written name `target` is not allowed; None where its definition decides."""
    own = (OWN, *plugins)
    if any(part.startswith("_") for part in target.split(".")):
        return "names with a leading underscore are private"
    if _within(target, own) or _within(target, WRITTEN):
        return None
    return "this target is not allowed (framework/recipe/allow.py says which are; a plugin's need plugins: [name])"


def refusal_of_definition(
    module: str, qualname: str, is_class: bool | None, declared: bool, plugins: Iterable[str]
) -> str | None:
    """Why an object defined in `module` as `qualname` is not allowed. `is_class` is None where that is unknown without
    importing; `declared` says whether it is marked as a component (`framework.recipe.component`).
    """
    if _within(module, (OWN, *plugins)):
        return None if declared else f"{module}.{qualname} is no component: only what @component declares may be named"
    if f"{module}.{qualname}" in FUNCTIONS or (_within(module, CLASSES_OF) and is_class is not False):
        return None
    return f"it is really {module}.{qualname}, which is not allowed"


class TargetNotAllowed(PermissionError):  # noqa: N818 - reads as what happened
    """A target outside the allow list."""


def verify(target: str, plugins: Iterable[str]) -> Any:
    """Import `target` and return it. Raises `TargetNotAllowed` unless both its name and its definition are."""
    plugins = tuple(plugins)
    if wrong := refusal(target, plugins):
        raise TargetNotAllowed(f"{target}: {wrong}")
    imported = _import(target)
    owner = getattr(imported, "__self__", None)
    known = inspect.isclass(imported) or inspect.isroutine(imported)
    if inspect.isroutine(imported) and owner is not None and not isinstance(owner, ModuleType):
        owner_class = owner if inspect.isclass(owner) else type(owner)
        module, qualname, is_class = owner_class.__module__, f"{owner_class.__qualname__}.{imported.__name__}", False
    elif known:
        module, qualname, is_class = str(imported.__module__), imported.__qualname__, inspect.isclass(imported)
    else:
        raise TargetNotAllowed(f"{target}: it is neither a class nor a function but {type(imported).__name__}")
    declared = is_declared(module, qualname)
    if wrong := refusal_of_definition(module, qualname, is_class, declared, plugins):
        raise TargetNotAllowed(f"{target}: {wrong}")
    return imported


def _import(target: str) -> Any:
    parts = target.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:depth])
        try:
            imported: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not _within(name, [error.name]):
                raise
            continue
        for part in parts[depth:]:
            imported = getattr(imported, part)
        return imported
    raise ModuleNotFoundError(f"no module of '{target}' can be imported", name=parts[0])
