"""Evaluated scenes with the model's answers, as reports show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from framework.evaluation.results import DRIVING
from framework.scene.episode_picture import RoadUsers
from framework.scene.types import Boxes, FloatArray, Question, Scene, Trajectory


@dataclass(frozen=True, slots=True)
class Reply:
    """The model's answer in one task."""

    answer: str
    """The generated text."""
    decoded: Trajectory | Boxes | str | None
    """What the text decodes to; None when it did not parse."""
    question: Question | None = None
    """The question, in the task `answer` only."""


@dataclass(frozen=True, slots=True)
class DrivenScene:
    """What was driven in a scene."""

    ego: FloatArray
    """The ego's states x, y, heading, speed (m, rad, m/s) from the current time on, `(t, 4)`."""
    others: RoadUsers
    """The road users around it."""
    rate_hz: float
    """Moments per second."""

    def path(self) -> list[list[float]]:
        """x, y and heading of the ego as a file keeps them: to a centimetre, and to a thousandth of a radian."""
        return [[round(x, 2), round(y, 2), round(heading, 3)] for x, y, heading in self.ego[:, :3].tolist()]


@dataclass(frozen=True, slots=True)
class Example:
    """A scene with the model's answers."""

    scene: Scene
    """The scene that the model saw."""
    replies: Mapping[str, Reply] = field(default_factory=dict)
    """{task: reply}."""
    measures: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    """{section: {sample: {metric: value}}}; a sample is one of the section's answers to the scene."""
    driven: DrivenScene | None = None
    """The episode that the model drove in a simulator; None where none was driven."""

    def with_answer(
        self, task: str, answer: str, decoded: Trajectory | Boxes | str | None, question: Question | None = None
    ) -> Example:
        """A copy with one more reply. The task `answer` also needs its `question`."""
        return replace(self, replies={**self.replies, task: Reply(answer, decoded, question)})

    def with_measures(self, section: str, measures: Mapping[str, float], sample: str = "") -> Example:
        """A copy with what was measured of one answer. A sample that is measured again keeps its first measures."""
        if not measures:
            return self
        samples = {sample: measures} | dict(self.measures.get(section, {}))
        return replace(self, measures={**self.measures, section: samples})

    def trajectory(self) -> Trajectory | None:
        """The predicted trajectory of the first driving task that parsed, else None."""
        decoded = (self.replies[task].decoded for task in DRIVING if task in self.replies)
        return next((one for one in decoded if isinstance(one, Trajectory)), None)

    def boxes(self) -> Boxes | None:
        """The detected boxes; None without a detection that parsed."""
        reply = self.replies.get("detect")
        return reply.decoded if reply is not None and isinstance(reply.decoded, Boxes) else None
