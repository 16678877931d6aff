"""What the tasks and sensors of a recipe need of a scene, and what its sources lack.

A dataset says in `lacks` which fields of a scene it never has, with the reasons, a task and a sensor in `needs` which
they cannot do without. Both are read from the source of the classes: no data is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from framework.recipe.annotation import is_component
from framework.recipe.arguments import fault_at
from framework.recipe.composition import Composition
from framework.recipe.constructor import Component
from framework.recipe.expression import Unknown
from framework.recipe.layers import children, value_at
from framework.recipe.problem import Key, Problem
from framework.recipe.signature import NoSuchTarget, locate

PERCEPTION = "perception"
"""An input that the task itself may do without, and a codec may not. A task without it is warned of: its share goes to
the stream's others, and `scale=tiny` takes such a codec for every recipe."""
EVALS = "evals"
"""Below this key a task without a scene costs a table; in training it costs the share that the recipe gives it."""


def missing_fields(composition: Composition) -> Iterator[Problem]:
    """Tasks that no scene of their source supports, and sensors that no source of the recipe has."""
    tasks, sensors = (_needs(value_at(composition.tree, ("data", part))) for part in ("tasks", "sensors"))
    streams: list[Mapping[str, str]] = []
    for key in _streams(composition.raw):
        stream = value_at(composition.tree, key)
        lacks = lacks_of(stream["source"])
        if key[0] != EVALS:
            streams.append(lacks)
        for at, name in _named(stream):
            gone = [field for field in tasks.get(name, ()) if field in lacks]
            if gone:
                reasons = "; ".join(f"{field}: {lacks[field]}" for field in gone)
                by_codec = gone == [PERCEPTION]
                message = (
                    f"no scene of the source has what the task {name!r} needs ({reasons}); give another source, "
                    f"{'a codec that refers to no such box (codecs/boxes=text), ' if by_codec else ''}or leave the "
                    "task out"
                )
                yield _as(fault_at(composition, (*key, *at), message), by_codec or key[0] == EVALS)
    absent = [name for name, needs in sensors.items() if streams and any(all(f in s for s in streams) for f in needs)]
    if absent:
        fields = [field for name in absent for field in sensors[name]]
        why = "; ".join(dict.fromkeys(stream[field] for stream in streams for field in fields if field in stream))
        message = (
            f"no source of the recipe has {', '.join(absent)} ({why}): the encoders learn nothing; add a "
            "source that has them, or leave them out of data/sensors and model/encoders"
        )
        yield _as(fault_at(composition, ("data", "sensors"), message), True)


def _as(problem: Problem, warning: bool) -> Problem:
    return Problem(problem.origin, problem.key, problem.message, problem.nearest, warning)


def _streams(raw: Any, below: Key = ()) -> Iterator[Key]:
    """The keys of the components that read a source for tasks."""
    if is_component(raw) and "source" in raw and ({"tasks", "task"} & raw.keys()):
        yield below
    for name, value in children(raw):
        yield from _streams(value, (*below, name))


def _named(stream: Mapping[str, Any]) -> Iterator[tuple[Key, str]]:
    """The tasks that a stream is used for, each with its key below it."""
    tasks, task = stream.get("tasks"), stream.get("task")
    if isinstance(tasks, dict):
        yield from ((("tasks", str(name)), str(name)) for name, weight in tasks.items() if weight is not None)
    if isinstance(task, str):
        yield ("task",), task


def _needs(components: Any) -> dict[str, tuple[str, ...]]:
    """The fields that components by name need; none for one that does not say."""
    named = components if isinstance(components, dict) else {}
    needs = {str(name): _attribute(value, "needs") for name, value in named.items()}
    return {name: tuple(map(str, fields)) for name, fields in needs.items() if isinstance(fields, tuple)}


def lacks_of(source: Any) -> Mapping[str, str]:
    """The fields that no scene of a source has, with the reasons: what it says itself, and what all its datasets do."""
    own = _attribute(source, "lacks")
    lacks = dict(own) if isinstance(own, dict) else {}
    datasets = source.get("datasets") if isinstance(source, dict) else None
    said = [_attribute(each, "lacks") for each in datasets.values() if each] if isinstance(datasets, dict) else []
    known = [each for each in said if isinstance(each, dict)]
    if known and len(known) == len(said):
        common = set.intersection(*(set(each) for each in known))
        lacks |= {field: "; ".join(dict.fromkeys(str(each[field]) for each in known)) for field in sorted(common)}
    return lacks


def _attribute(value: Any, name: str) -> Any:
    """An attribute of a component of the recipe, as far as its source tells; else None."""
    if not is_component(value):
        return None
    try:
        located = locate(str(value["_target_"]))
        given = {str(key): each for key, each in value.items() if key != "_target_"}
        return Component(located, given).attribute(name)
    except (NoSuchTarget, SyntaxError, Unknown):
        return None
