"""What becomes of a policy's answers: their plans carried out, as the stage says."""

from __future__ import annotations

from collections.abc import Sequence

from framework.data.render.sample import Sample
from framework.generation.engine import Generation
from framework.simulation.rewards.rollouts import RolloutBatch, roll_out
from framework.training.evaluators.driver import EngineDriver
from framework.training.rl.metrics import Means
from framework.training.rl.sampler import Asking, drive_task


def outcomes(
    asking: Asking, prompts: Sequence[Sample], answers: Sequence[Sequence[Generation]], means: Means
) -> RolloutBatch:
    """The answers to each of `prompts` carried out in the stage's simulator: in open loop, or with the stage's
    continuation, for which the engine is asked again and which adds to `means`. Raises what `roll_out` and
    `Continuation` do.
    """
    stage, loader = asking.stage, asking.loader
    flat = [(prompt, answer) for prompt, group in zip(prompts, answers, strict=True) for answer in group]
    tasks = [drive_task(loader, prompt) for prompt, _ in flat]
    rollouts = roll_out(
        stage.simulator,
        [prompt.scene for prompt, _ in flat],
        [answer.text for _, answer in flat],
        [task.thought(answer.text) for task, (_, answer) in zip(tasks, flat, strict=True)],
        [len(answer.tokens) for _, answer in flat],
        [task.decode(answer.text, prompt.scene) for task, (prompt, answer) in zip(tasks, flat, strict=True)],
    )
    if stage.continuation is None:
        return rollouts
    named = [(prompt.task, task) for task, (prompt, _) in zip(tasks, flat, strict=True)]
    rows, renderer = stage.continuation.batch_size, loader.renderer
    driver = EngineDriver(asking.engine, renderer, named, stage.max_new_tokens, rows)
    return stage.continuation(rollouts, stage.simulator, driver, means)
