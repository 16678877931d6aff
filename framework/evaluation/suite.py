"""The metrics of all tasks, for the model and for baselines on the same scenes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

from torch import nn

from framework.evaluation.answers import AnswerScore, CaptionScore, MajorityScore
from framework.evaluation.baselines import TRAJECTORY_BASELINES, perception_copy
from framework.evaluation.detection_score import DetectionScore
from framework.evaluation.planning import TrajectoryScore
from framework.evaluation.results import COUNTS, DRIVING, MODEL, PERCEPTION, Results, Sliced
from framework.evaluation.slices import ALL, RowStates
from framework.recipe.component import component
from framework.recipe.ranges import Gap, Metres
from framework.scene.check import box_fault
from framework.scene.kinematics import EGO, Vehicle
from framework.scene.types import Boxes, Question, Scene, SceneError, Trajectory


@component
class Suite(nn.Module):
    """The metrics of driving (directly and after reasoning), detection, answers and captions.

    `update` adds one answer, on every rank those of its own scenes; `compute` merges the ranks. The suite is a torch
    module so that `.to(device)` moves its state: NCCL merges tensors on GPUs only.

    Args:
        majority: {topic: the training questions' most frequent answer}; see `MajorityScore`.
        vehicle_length: the length (m) of the ego whose collisions and road departures count.
        vehicle_width: its width (m).
        vehicle_rear_overhang: the rear axle's distance (m) ahead of the rear bumper.
    """

    def __init__(
        self,
        majority: Mapping[str, str] | None = None,
        vehicle_length: Metres = EGO.length,
        vehicle_width: Metres = EGO.width,
        vehicle_rear_overhang: Gap = EGO.rear_overhang,
    ) -> None:
        super().__init__()
        vehicle = Vehicle(length=vehicle_length, width=vehicle_width, rear_overhang=vehicle_rear_overhang)
        self.planning = {
            task: {method: TrajectoryScore(vehicle) for method in (MODEL, *TRAJECTORY_BASELINES)} for task in DRIVING
        }
        self.detection = {method: DetectionScore() for method in (MODEL, PERCEPTION)}
        self.answers, self.majority = AnswerScore(), MajorityScore(majority)
        self.captions = CaptionScore()
        self.sections: dict[str, dict[str, RowStates]] = {
            **{task: dict(scores) for task, scores in self.planning.items()},
            "detect": dict(self.detection),
            "answer": {MODEL: self.answers, "majority": self.majority},
            "caption": {MODEL: self.captions},
        }
        # Registered, so that `.to(device)` reaches them.
        self.metrics = nn.ModuleList(metric for methods in self.sections.values() for metric in methods.values())

    def update(
        self,
        scene: Scene,
        task: str,
        answer: str,
        decoded: Trajectory | Boxes | str | None = None,
        question: Question | None = None,
        samples: Sequence[Trajectory] = (),
    ) -> Mapping[str, float]:
        """Add the model's answer about one scene. Returns what was measured of this answer alone.

        Args:
            scene: the scene.
            task: drive, reason, detect, answer or caption.
            answer: the generated text.
            decoded: the trajectory or boxes that the answer decodes to; None when it did not parse.
            question: the question, for the task answer.
            samples: further trajectories for minADE.

        Raises `SceneError` on another task, on a decoded value of another task's type, and where the scene lacks the
        truth.
        """
        if task in DRIVING and (decoded is None or isinstance(decoded, Trajectory)):
            return self._drive(scene, task, decoded, samples)
        if task == "detect" and (decoded is None or isinstance(decoded, Boxes)):
            return self._detect(scene, decoded)
        if task == "answer" and question is not None:
            self.majority.update(scene, question)
            self.answers.update(scene, question, answer)
            return self.answers.judge(question, answer)
        if task == "caption":
            judged = self.captions.judge(scene, answer)
            self.captions.update(scene, judged)
            return judged
        raise SceneError(
            f"scene {scene.id}: cannot judge task {task!r} with a decoded {type(decoded).__name__} and question "
            f"{question!r}; tasks are {', '.join(self.sections)}: trajectories for {' and '.join(DRIVING)}, "
            "boxes for detect, the question for answer"
        )

    def compute(self, alone: bool = False) -> Results:
        """Merge the ranks and reduce (collective, unless this rank reduces its own samples `alone`). Sections and
        methods without samples are absent, as are unknown values.
        """
        for methods in self.sections.values():
            for metric in methods.values():
                metric.alone = alone
        with warnings.catch_warnings():
            # A task that no rank evaluates is no reason to warn, but every rank must still take part in its merge.
            warnings.filterwarnings("ignore", message=".*was called before the.*update")
            sections = {
                task: {method: metric.compute() for method, metric in methods.items()}
                for task, methods in self.sections.items()
            }
        results = {
            task: {method: drop_nan(sliced) for method, sliced in methods.items() if _count(sliced)}
            for task, methods in sections.items()
        }
        return {task: methods for task, methods in results.items() if methods}

    def _drive(
        self, scene: Scene, task: str, predicted: Trajectory | None, samples: Sequence[Trajectory]
    ) -> Mapping[str, float]:
        scores = self.planning[task]
        # All are judged before one is added: a scene that cannot be judged is left out for every method.
        judged = {MODEL: scores[MODEL].judge(scene, predicted, samples)}
        judged |= {name: scores[name].judge(scene, make(scene)) for name, make in TRAJECTORY_BASELINES.items()}
        for name, measures in judged.items():
            scores[name].update(scene, measures)
        return judged[MODEL]

    def _detect(self, scene: Scene, predicted: Boxes | None) -> Mapping[str, float]:
        self.detection[MODEL].update(scene, predicted)
        copied = perception_copy(scene)
        if copied is not None:
            self.detection[PERCEPTION].update(scene, copied)
        return {"parse_failure": float(predicted is None or box_fault(predicted) is not None)}


def headline(results: Results) -> dict[str, float]:
    """The model's metrics over all scenes, flat, for loggers: {"drive/ade": 1.2, ...}."""
    return {
        f"{section}/{metric}": by_slice[ALL]
        for section, methods in results.items()
        for metric, by_slice in methods.get(MODEL, {}).items()
        if ALL in by_slice
    }


def _count(sliced: Sliced) -> float:
    """The number of scenes or questions."""
    return next(sliced[name][ALL] for name in COUNTS if name in sliced)


def drop_nan(sliced: Sliced) -> Sliced:
    """`sliced` without NaN values, and without metrics that have no other."""
    values = {
        metric: {name: value for name, value in by_slice.items() if not math.isnan(value)}
        for metric, by_slice in sliced.items()
    }
    return {metric: by_slice for metric, by_slice in values.items() if by_slice}
