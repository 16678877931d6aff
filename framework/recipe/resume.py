"""What a changed recipe means for a run that goes on from a checkpoint: each value that differs is applied or refused.

The rules are data, `resume.yaml`. Pure functions of two resolved recipes; who finds the checkpoint's is
`framework.launch.resumption`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from framework.recipe.graft import STAGES
from framework.recipe.layers import leaves
from framework.recipe.problem import Key

TABLE = Path(__file__).with_name("resume.yaml")
TASK = "framework.training.tasks.train.Train"
"""The task whose runs have checkpoints to go on from."""
UNKNOWN = "no rule says that a run may go on with another value"
LIMIT: Key = ("curriculum", "max_steps_per_stage")
NEW_RUN = "start a new run (run.name=NEW init_from=RUN)"
"""What a message advises for a run that cannot go on."""
SHOWN = 60
"""Characters of a value that a message shows."""

Effect = Literal["irrelevant", "applied", "refused"]


@dataclass(frozen=True, slots=True)
class Point:
    """Where a run goes on: a checkpoint."""

    stage: str
    """The stage that the checkpoint belongs to."""
    step: int
    """Steps trained, counted over the whole curriculum."""


@dataclass(frozen=True, slots=True)
class Change:
    """A value that differs from the checkpoint's."""

    key: Key
    """Its key in the recipe's tree, `task` included."""
    effect: Effect
    """What becomes of it."""
    message: str
    """The values, and for a refusal the reason and the remedy."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of the table."""

    pattern: Key
    """The key, where `*` stands for one name and a final `**` for any rest, also none."""
    effect: Effect
    """What becomes of a changed value."""
    why: str = ""
    """The reason of a refusal."""

    def matches(self, key: Key) -> bool:
        """Whether the rule is about the value at `key`."""
        fixed = self.pattern[:-1] if self.pattern[-1] == "**" else self.pattern
        if len(key) < len(fixed) or (fixed is self.pattern and len(key) != len(fixed)):
            return False
        return all(name in ("*", part) for name, part in zip(fixed, key, strict=False))


@functools.cache
def rules() -> tuple[Rule, ...]:
    """The rows of the table, first to last."""
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return (
        *(Rule(_key(pattern), "irrelevant") for pattern in table["irrelevant"]),
        *(Rule(_key(pattern), "applied") for pattern in table["applied"]),
        *(Rule(_key(pattern), "refused", why) for pattern, why in table["refused"].items()),
        *(Rule(_key(pattern), "applied") for pattern in table["applied_otherwise"]),
    )


def rule_of(key: Key) -> Rule:
    """The rule about the value at `key`, without `task`; a refusal where the table has none."""
    return next((rule for rule in rules() if rule.matches(key)), Rule(key, "refused", UNKNOWN))


def changes(old: Any, new: Any, point: Point) -> list[Change]:
    """Every value of the recipe `new` that differs from `old`, with which the checkpoint at `point` was trained.

    Both are resolved trees. Values of stages that have not started, and irrelevant ones, are left out.
    """
    if not all(tree.get("task", {}).get("_target_") == TASK for tree in (old, new)):
        return []
    before, now = _lengths(old), _lengths(new)
    started = list(before)[: list(before).index(point.stage) + 1] if point.stage in before else [point.stage]
    if list(now)[: len(started)] != started:
        return [_order(started, list(now), point)]
    ended = started[:-1]
    found = list(_changed_lengths(before, now, ended, point))
    differing: list[Key] = []
    for key, was, value in _differences(old, new):
        if any(key[: len(above)] == above for above in differing):
            continue  # what lies below a changed component's target differs with it
        effect, why = _effect(key, started, ended)
        if effect == "irrelevant":
            continue
        if effect == "refused":
            differing.append(key[:-1] if key[-1] == "_target_" else key)
            remedy = "set it back" if was is _ABSENT else f"keep {_shown(was)}"
            why += f"; {remedy}, or {NEW_RUN}"
        message = f"{_shown(was)} until step {point.step}, now {_shown(value)}"
        tree_key = key if key[0] == "run" else ("task", *key)
        found.append(Change(tree_key, effect, f"{message}: {why if why else 'applies from the next step on'}"))
    return found


def _effect(key: Key, started: Sequence[str], ended: Sequence[str]) -> tuple[Effect, str]:
    """What becomes of the value at `key`, and why where it is refused."""
    if key == LIMIT or (key[:2] == STAGES and key[3:] == ("steps",)):
        return "irrelevant", ""  # the lengths that follow from them are compared
    rule = rule_of(key)
    if key[:2] == STAGES and len(key) > 2:
        if key[2] not in started:
            return "irrelevant", ""
        if key[2] in ended and rule.effect != "irrelevant":
            return "refused", f"stage {key[2]} has ended"
    return rule.effect, rule.why


def _differences(old: Any, new: Any) -> Iterator[tuple[Key, Any, Any]]:
    """Yields key, old and new value of every leaf that differs below `task` and at `run.seed`, shallow ones first."""
    both = []
    for tree in (old, new):
        values = {key: value for key, value in leaves(tree["task"]) if key}
        both.append(values | {("run", "seed"): tree["run"]["seed"]})
    was, now = both
    differing = [key for key in dict.fromkeys((*now, *was)) if was.get(key, _ABSENT) != now.get(key, _ABSENT)]
    for key in sorted(differing, key=lambda key: (len(key), key[-1] != "_target_")):
        yield key, was.get(key, _ABSENT), now.get(key, _ABSENT)


_ABSENT = object()


def _lengths(tree: Any) -> dict[str, int]:
    """Each stage's number of steps."""
    curriculum = tree["task"]["curriculum"]
    limit = curriculum.get("max_steps_per_stage")
    lengths = {str(name): stage["steps"] for name, stage in curriculum["stages"].items()}
    return {name: steps if limit is None else min(steps, limit) for name, steps in lengths.items()}


def _changed_lengths(
    before: dict[str, int], now: dict[str, int], ended: Sequence[str], point: Point
) -> Iterator[Change]:
    for name in ended:
        if now[name] != before[name]:
            message = (
                f"stage {name} has ended after {before[name]} steps, and the checkpoint of step {point.step} is of "
                f"stage {point.stage}; it cannot have {now[name]} now: keep {before[name]}, or "
                f"{NEW_RUN}"
            )
            yield Change(("task", *STAGES, name, "steps"), "refused", message)
    current, start = point.stage, sum(before[name] for name in ended)
    if now[current] == before.get(current):
        return
    key, trained = ("task", *STAGES, current, "steps"), point.step - start
    if now[current] < trained:
        message = f"stage {current} has trained {trained} steps, and cannot end after {now[current]}; give {trained}"
        yield Change(key, "refused", f"{message} or more, or {NEW_RUN}")
    else:
        message = f"{before.get(current)} steps until step {point.step}, now {now[current]}"
        yield Change(key, "applied", f"{message}: the schedule is that of the new length from the next step on")


def _order(started: Sequence[str], now: Sequence[str], point: Point) -> Change:
    message = (
        f"the run has trained {', '.join(started)} and its checkpoint of step {point.step} is of stage {point.stage}, "
        f"but the recipe's stages are {', '.join(now)}; keep the stages that have started, in their order, or "
        f"{NEW_RUN}"
    )
    return Change(("task", *STAGES), "refused", message)


def _shown(value: Any) -> str:
    text = "not given" if value is _ABSENT else repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _key(pattern: str) -> Key:
    return tuple(pattern.split("."))
