"""The mark of a component: a class or function that a recipe may name as `_target_`.

A recipe is data from a pull request. It may construct what the project and its plugins declare as components, and call
nothing else of theirs: not a function that submits a job, not a class that starts a process. The check reads the mark
from the source, without importing it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Target = TypeVar("Target", bound=Callable[..., Any])

NAME = "component"
"""The decorator's name, by which the check finds it in the source."""


_declared: set[tuple[str, str]] = set()


def component(target: Target) -> Target:
    """Declare `target`, a class or a function, as a component. It is returned unchanged."""
    _declared.add((target.__module__, target.__qualname__))
    return target


def is_declared(module: str, qualname: str) -> bool:
    """Whether what an imported module defines as `qualname` was declared as a component."""
    return (module, qualname) in _declared
