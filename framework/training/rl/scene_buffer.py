"""The buffer of hard scenes: prompts that are answered again in place of the stream's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from framework.data.stream.loader import StepLoader
from framework.objective.scene_replay import Measured, SceneReplay
from framework.training.rl.prompt_state import load_prompt, prompt_state
from framework.training.rl.rollout import Prompt


class SceneBuffer:
    """Keeps the scenes of a `SceneReplay`, the same on all ranks, and puts them in place of prompts of the stream.

    What takes a prompt's place depends on that prompt, the step and the buffer, hence not on the number of ranks. An
    answered prompt counts as drawn from the stream, also where another took its place.

    Args:
        replay: What is kept and drawn; None keeps nothing.
        uniform: Gives a number in [0, 1) that depends on the prompt, the step and a third number alone.
        loader: Reads prompts again.
    """

    def __init__(
        self, replay: SceneReplay | None, uniform: Callable[[Prompt, int, int], float], loader: StepLoader
    ) -> None:
        self.replay, self.uniform, self.loader = replay, uniform, loader
        self.kept: dict[str, Measured] = {}
        self._new: dict[str, Measured] = {}

    def fill(self, prompts: Sequence[Prompt], step: int) -> list[Prompt]:
        """Returns `prompts`, a share of them replaced by prompts that are kept.

        The id of one that takes another's place names both: where two draw the same scene they get other answers.
        """
        if self.replay is None or not self.kept:
            return list(prompts)
        filled = []
        for prompt in prompts:
            again = None
            if self.uniform(prompt, step, -2) < self.replay.share:
                name = self.replay.choose(self.kept, self.uniform(prompt, step, -3))
                again = load_prompt(dict(self.kept[name].prompt), self.loader)
            filled.append(prompt if again is None else replace(again, id=f"{again.id}~{prompt.id}"))
        return filled

    def count(self, prompt: Prompt, successes: float, answers: int, step: int) -> None:
        """Counts the judged answers to a prompt; none say nothing."""
        if self.replay is not None and answers:
            name = prompt.scene.id
            before = self._new.get(name, Measured({}, 0.0, 0.0, step))
            state = prompt_state(prompt, self.loader.mixture)
            self._new[name] = Measured(state, before.successes + successes, before.answers + answers, step)

    def update(self, gather: Callable[[Any], list[Any]], step: int) -> None:
        """Takes over what all ranks counted since the last update (`gather` is collective)."""
        if self.replay is None:
            return
        new: dict[str, Measured] = {}
        for part in gather({name: tuple(one) for name, one in self._new.items()}):
            for name, (prompt, successes, answers, measured) in part.items():
                other = new.get(name, Measured(prompt, 0.0, 0.0, measured))
                new[name] = Measured(other.prompt, other.successes + successes, other.answers + answers, measured)
        self._new.clear()
        self.kept = self.replay.updated(self.kept, new, step)

    def metrics(self, step: int) -> dict[str, float]:
        """Returns the number of scenes that are kept, and their mean age in steps and success."""
        if self.replay is None:
            return {}
        count = max(1, len(self.kept))
        return {
            "replay/scenes": float(len(self.kept)),
            "replay/age": sum(step - one.step for one in self.kept.values()) / count,
            "replay/success": sum(one.success for one in self.kept.values()) / count,
        }

    def state(self) -> dict[str, list[Any]]:
        """Returns the scenes that are kept as JSON."""
        return {name: list(one) for name, one in self.kept.items()}

    def load(self, state: Mapping[str, Sequence[Any]]) -> None:
        """Takes over the scenes of a `state`."""
        self.kept = {name: Measured(*one) for name, one in state.items()}
