"""Asks a model to drive held-out scenes in the simulator, and measures where that leads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from framework.data.feed import Feed
from framework.data.loader import Sample, collate_for
from framework.data.mixture import Source, read_scenes
from framework.data.tasks import Drive
from framework.evaluation.baselines import TRAJECTORY_BASELINES
from framework.evaluation.report import Example
from framework.evaluation.slices import SceneMeasures, mean
from framework.evaluation.suite import MODEL, SIMULATION, Results, known
from framework.model.assembly import LanguageActionModel
from framework.model.generate import generate
from framework.parallel.mesh import DataRank
from framework.rollout.closed_loop import episode_measures
from framework.rollout.episode import Episodes, drive
from framework.rollout.observe import policy_planner
from framework.rollout.rewards.reward_sum import RewardSum
from framework.rollout.rewards.rollouts import Rollouts, roll_out
from framework.rollout.scenes import batch_scenes
from framework.rollout.simulator import Simulator
from framework.scene.types import Scene, Trajectory
from framework.scene.world.rig import TINY_RIG, Rig
from framework.training.sampling_metrics import gathered
from framework.training.transfer import to_device

EXPERT = "expert"
MEASURES = (
    "collision", "at_fault_collision", "off_road", "red_light", "close_call", "progress", "comfortable",
    "speed_compliance", "planning_score", "reward", "parse_failure",
)  # fmt: skip


@dataclass(frozen=True)
class Simulation:
    """Scenes of `source` (the first `scenes`; None: all) driven by what the model answers to `task` in at most
    `max_new_tokens`, greedily, `rows` scenes at a time.

    Without `replan_every` one plan is carried out to its end, and `rewards` judge it too, as are the baselines' and the
    expert's. With it the model is shown the scene anew after so many of the plan's periods (closed loop), for `steps`
    periods in all: scenes of the built-in world through `rig`, others without sensors. `untrained`: also before the
    first stage.
    """

    source: Source
    simulator: Simulator
    rewards: RewardSum
    task: str = "drive"
    scenes: int | None = None
    max_new_tokens: int = 64
    rows: int = 32
    replan_every: int | None = None
    steps: int = 20
    rig: Rig = field(default=TINY_RIG)
    untrained: bool = False

    def examine(self, model: LanguageActionModel, data: Feed, place: DataRank) -> tuple[Results, list[Example]]:
        """Results over all ranks, and this one's scenes with the plans; the model is left as it was."""
        scores = {name: SceneMeasures(dict.fromkeys(MEASURES, mean)) for name in self._methods()}
        for score in scores.values():
            score.to(next(model.parameters()).device)
        examples, training = list[Example](), model.training
        model.eval()
        scenes = list(read_scenes(self.source, self.scenes))[place.rank :: place.world]
        for start in range(0, len(scenes), self.rows):
            part = scenes[start : start + self.rows]
            texts = self._answers(model, data, part)
            task = self._drive(data)
            plans = [task.decode(text, scene) for text, scene in zip(texts, part, strict=True)]
            if place.writes:
                self._judge(scores, model, data, part, texts, plans)
            examples += [Example(s).with_answer(self.task, t, p) for s, t, p in zip(part, texts, plans, strict=True)]
        model.train(training)
        self.rewards.settle(lambda errors: gathered(errors, place))
        section = {name: known(score.compute()) for name, score in scores.items()}
        return {SIMULATION: {name: sliced for name, sliced in section.items() if sliced}}, examples

    def _methods(self) -> tuple[str, ...]:
        return (MODEL,) if self.replan_every else (MODEL, *TRAJECTORY_BASELINES, EXPERT)

    def _drive(self, data: Feed) -> Drive:
        task = data.tasks[self.task]
        if not isinstance(task, Drive):
            raise ValueError(f"examination: task {self.task} has no plan to carry out; give drive or reason")
        return task

    def _answers(self, model: LanguageActionModel, data: Feed, scenes: Sequence[Scene]) -> list[str]:
        """What the model says to each of `scenes`."""
        renderer, task = data.renderer(model.processor), self._drive(data)
        prompts = [renderer.render(s, task.conversation(s, self.task), for_generation=True) for s in scenes]
        samples = [Sample(prompt, scene, self.task) for prompt, scene in zip(prompts, scenes, strict=True)]
        batch = to_device(collate_for(renderer, samples, generation=True), next(model.parameters()).device)
        return generate(model, batch, model.processor.tokenizer, [task.grammar] * len(scenes), self.max_new_tokens)

    def _judge(
        self,
        scores: dict[str, SceneMeasures],
        model: LanguageActionModel,
        data: Feed,
        scenes: Sequence[Scene],
        texts: Sequence[str],
        plans: Sequence[Trajectory | None],
    ) -> None:
        """Add what comes of the model's `plans`, and of the others'."""
        task = self._drive(data)
        if self.replan_every:
            episodes = self._in_closed_loop(model, data, scenes)
            for row, measures in enumerate(_by_scene(episodes)):
                failed = float(plans[row] is None)
                scores[MODEL].update(scenes[row], measures | {"reward": float("nan"), "parse_failure": failed})
            return
        for name, score in scores.items():
            others = [_other(name, scene, one) for scene, one in zip(scenes, plans, strict=True)]
            said = texts if name == MODEL else [""] * len(scenes)
            thoughts = [task.thought(text) if name == MODEL else None for text in said]
            found = roll_out(self.simulator, scenes, said, thoughts, [0] * len(scenes), others)
            for scene, measures in zip(scenes, self._measured(found), strict=True):
                score.update(scene, measures)

    def _measured(self, rollouts: Rollouts) -> Iterator[dict[str, float]]:
        """The measures of each plan; one that did not parse counts as the worst in every event."""
        rewards = self.rewards(rollouts)
        for row, measures in enumerate(_by_scene(rollouts.episodes)):
            reward = float(rewards.total[row]) if rewards.kept[row] else float("nan")
            failed = rollouts.plans[row] is None
            if failed:
                worst = {"progress": 0.0, "comfortable": 0.0, "speed_compliance": 0.0, "planning_score": 0.0}
                measures = {name: value if value != value else worst.get(name, 1.0) for name, value in measures.items()}
            yield measures | {"reward": reward, "parse_failure": float(failed)}

    @torch.no_grad()
    def _in_closed_loop(self, model: LanguageActionModel, data: Feed, scenes: Sequence[Scene]) -> Episodes:
        assert self.replan_every is not None
        task = self._drive(data)

        def policy(seen: Sequence[Scene]) -> list[Trajectory | None]:
            texts = self._answers(model, data, seen)
            return [task.decode(text, scene) for text, scene in zip(texts, seen, strict=True)]

        built_in = all(scene.provenance.get("dataset") == "built-in world" for scene in scenes)
        planner = policy_planner(scenes, policy, self.rig if built_in else None)
        return drive(self.simulator, batch_scenes(scenes), planner, self.steps, self.replan_every)


def _other(name: str, scene: Scene, plan: Trajectory | None) -> Trajectory | None:
    """The plan of method `name`: the model's own `plan`, the expert's, or a baseline's."""
    if name == MODEL:
        return plan
    return scene.future if name == EXPERT else TRAJECTORY_BASELINES[name](scene)


def _by_scene(episodes: Episodes) -> Iterator[dict[str, float]]:
    figures = episode_measures(episodes)
    for row in range(len(episodes)):
        yield {name: float(values[row]) for name, values in figures.items()}
