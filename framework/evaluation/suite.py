"""All metrics of all tasks at once, beside the baselines on the same scenes; what an evaluation fills and a report
shows.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from framework.evaluation.baselines import TRAJECTORY_BASELINES, perception_copy
from framework.evaluation.detection_score import DetectionScore
from framework.evaluation.language import AnswerScore, CaptionScore, MajorityScore
from framework.evaluation.planning import PlanningScore
from framework.evaluation.slices import ALL, Sliced
from framework.scene.kinematics import EGO, Vehicle
from framework.scene.types import Boxes, Question, Scene, Trajectory

MODEL = "model"
PERCEPTION = "perception"
COUNTS = ("scenes", "questions")
"""Metrics that say how many there were."""
Results = dict[str, dict[str, Sliced]]
"""{section: {method: {metric: {slice: value}}}}. Sections are the tasks that were evaluated (drive, detect, answer,
caption); the method `MODEL` is what was evaluated, the others are baselines on the same scenes.
"""


@dataclass(frozen=True, slots=True)
class Drive:
    """One judged drive, kept for the report. `predicted` is None where the answer did not parse; `baselines` by name."""

    scene: Scene
    predicted: Trajectory | None
    baselines: dict[str, Trajectory]
    ade: float


@dataclass(frozen=True, slots=True)
class Reply:
    """One answered question (or caption, of topic `caption`), kept for the report."""

    scene: Scene
    question: Question
    answer: str | None


class Suite(nn.Module):
    """The metrics of driving, detection, answers and captions.

    Hand it every answer through `drive`, `detect`, `answer` and `caption`, on every rank its own; `compute` merges the
    ranks. It is a torch module for its `.to(device)`: NCCL merges tensors on GPUs only. The first `keep` answers of
    each task of this rank stay for the report's pictures, in `drives`, `detected` and `replies`. `majority` are the
    training questions' commonest answers by topic, see `MajorityScore`. The vehicle's measures (m) are those of the
    ego whose collisions are counted.
    """

    def __init__(
        self,
        keep: int = 64,
        majority: Mapping[str, str] | None = None,
        vehicle_length: float = EGO.length,
        vehicle_width: float = EGO.width,
        vehicle_rear_overhang: float = EGO.rear_overhang,
    ) -> None:
        super().__init__()
        vehicle = Vehicle(length=vehicle_length, width=vehicle_width, rear_overhang=vehicle_rear_overhang)
        self.keep = keep
        self.planning = {name: PlanningScore(vehicle) for name in (MODEL, *TRAJECTORY_BASELINES)}
        self.detection = {name: DetectionScore() for name in (MODEL, PERCEPTION)}
        self.answers = AnswerScore()
        self.majority = MajorityScore(majority)
        self.captions = CaptionScore()
        self.metrics = nn.ModuleList(
            [*self.planning.values(), *self.detection.values(), self.answers, self.majority, self.captions]
        )
        self.drives: list[Drive] = []
        self.detected: dict[str, Boxes] = {}
        self.replies: list[Reply] = []

    def drive(self, scene: Scene, predicted: Trajectory | None, samples: Sequence[Trajectory] = ()) -> None:
        """Add a drive: the trajectory decoded from the answer, None when it did not parse; `samples` are further ones
        for minADE.
        """
        measures = self.planning[MODEL].judge(scene, predicted, samples)
        self.planning[MODEL].update(measures, scene.kind)
        baselines = {name: make(scene) for name, make in TRAJECTORY_BASELINES.items()}
        for name, trajectory in baselines.items():
            self.planning[name].update(self.planning[name].judge(scene, trajectory), scene.kind)
        if len(self.drives) < self.keep:
            self.drives.append(Drive(scene, predicted, baselines, measures["ade"]))

    def detect(self, scene: Scene, predicted: Boxes | None) -> None:
        """Add a detection: the boxes decoded from the answer, None when it did not parse. Where the scene has
        perception boxes, these are judged beside it.
        """
        self.detection[MODEL].update(scene, predicted)
        copied = perception_copy(scene)
        if copied is not None:
            self.detection[PERCEPTION].update(scene, copied)
        if predicted is not None and len(self.detected) < self.keep:
            self.detected[scene.id] = predicted

    def answer(self, scene: Scene, question: Question, answer: str | None) -> None:
        """Add the answer to a question of the scene."""
        self.answers.update(scene, question, answer)
        self.majority.update(scene, question)
        if len(self.replies) < self.keep:
            self.replies.append(Reply(scene, question, answer))

    def caption(self, scene: Scene, caption: str | None) -> None:
        """Add a caption of the scene."""
        self.captions.update(self.captions.judge(scene, caption), scene.kind)

    def compute(self) -> Results:
        """Merge the ranks (all of them must call this) and reduce. Sections and methods without a sample, and values
        that are unknown, are absent.
        """
        with warnings.catch_warnings():
            # A task that nobody evaluated is nothing to warn about, but every rank must take part in its merging all the same.
            warnings.filterwarnings("ignore", message=".*was called before the.*update")
            sections: Results = {
                "drive": {name: metric.compute() for name, metric in self.planning.items()},
                "detect": {name: metric.compute() for name, metric in self.detection.items()},
                "answer": {MODEL: self.answers.compute(), "majority": self.majority.compute()},
                "caption": {MODEL: self.captions.compute()},
            }
        known = {
            section: {name: _known(sliced) for name, sliced in methods.items() if _count(sliced)}
            for section, methods in sections.items()
        }
        return {section: methods for section, methods in known.items() if methods}


def headline(results: Results) -> dict[str, float]:
    """The model's figures over all scenes, flat, for loggers: {"drive/ade": 1.2, ...}."""
    return {
        f"{section}/{metric}": by_slice[ALL]
        for section, methods in results.items()
        for metric, by_slice in methods.get(MODEL, {}).items()
        if ALL in by_slice
    }


def _count(sliced: Sliced) -> float:
    """How many scenes or questions there were."""
    return next(sliced[name][ALL] for name in COUNTS if name in sliced)


def _known(sliced: Sliced) -> Sliced:
    """Without values that are NaN, and metrics that have no other."""
    kept = {
        metric: {name: value for name, value in by_slice.items() if not math.isnan(value)}
        for metric, by_slice in sliced.items()
    }
    return {metric: by_slice for metric, by_slice in kept.items() if by_slice}
