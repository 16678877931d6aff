"""What a scene is used for: each task turns it into a question for the model and the answer to learn."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from framework.scene.codec import ActionCodec, BoxCodec
from framework.scene.types import Boxes, Question, Scene, Trajectory


@dataclass(frozen=True, slots=True)
class Conversation:
    """One exchange: `prompt` follows the sensors in the user's turn, `answer` is what the assistant is to say.

    `special` names the special tokens that the answer may hold; any other special token in either text is somebody's
    mischief.
    """

    prompt: str
    answer: str
    special: tuple[str, ...] = ()


class Task(Protocol):
    """A way to use a scene. `tokens` are the special tokens that its answers use, `grammar` (Lark) the form they must
    have, if any.
    """

    @property
    def tokens(self) -> tuple[str, ...]:
        """See above."""
        ...

    @property
    def grammar(self) -> str | None:
        """See above."""
        ...

    def supports(self, scene: Scene) -> bool:
        """Whether the scene holds what the task needs."""
        ...

    def prompt(self, scene: Scene, draw: str) -> str:
        """The user's words alone, also where a scene holds nothing to answer them with. Where there is a choice (one of
        several questions), a hash of `draw` and the scene's id makes it.
        """
        ...

    def conversation(self, scene: Scene, draw: str) -> Conversation:
        """The exchange: that prompt and its answer."""
        ...

    def decode(self, answer: str, scene: Scene) -> Trajectory | Boxes | str | None:
        """What an answer says; None when it does not have the form it should."""
        ...


class Drive:
    """Behaviour cloning: command in, the expert's future out, spelled by `codec`; with `reason`, its thought goes
    before it.
    """

    def __init__(self, codec: ActionCodec, reason: bool = False) -> None:
        self.codec = codec
        self.reason = reason
        self.tokens = codec.tokens
        self.grammar = _thinking_first(codec.grammar) if reason else codec.grammar

    def supports(self, scene: Scene) -> bool:
        """A history, a future, and a thought where reasons are wanted."""
        return scene.history is not None and scene.future is not None and (not self.reason or scene.thought is not None)

    def prompt(self, scene: Scene, draw: str) -> str:
        """See `Task`."""
        asked = f"Command: {scene.command}. {self.codec.instruction}"
        return f"{asked} Think first." if self.reason else asked

    def conversation(self, scene: Scene, draw: str) -> Conversation:
        """See `Task`."""
        answer = self.codec.encode(scene)
        if self.reason:
            answer = f"{scene.thought}\n{answer}"
        return Conversation(self.prompt(scene, draw), answer, self.tokens)

    def decode(self, answer: str, scene: Scene) -> Trajectory | None:
        """See `Task`: the trajectory after the thought."""
        return self.codec.decode(answer.rpartition("\n")[2], scene)

    def thought(self, answer: str) -> str | None:
        """What an answer says before its action; None where no reasons are asked for."""
        return answer.rpartition("\n")[0] if self.reason else None


class Detect:
    """Three-dimensional detection: all annotated boxes, spelled by `codec`."""

    tokens = ()

    def __init__(self, codec: BoxCodec) -> None:
        self.codec = codec
        self.grammar = codec.grammar

    def supports(self, scene: Scene) -> bool:
        """Annotated boxes, be there none in sight."""
        return scene.boxes is not None

    def prompt(self, scene: Scene, draw: str) -> str:
        """See `Task`."""
        return f"Detect all objects. {self.codec.instruction}"

    def conversation(self, scene: Scene, draw: str) -> Conversation:
        """See `Task`."""
        assert scene.boxes is not None
        return Conversation(self.prompt(scene, draw), self.codec.encode(scene.boxes))

    def decode(self, answer: str, scene: Scene) -> Boxes | None:
        """See `Task`."""
        return self.codec.decode(answer)


class Answer:
    """Visual question answering: `questions_per_sample` of the scene's questions at once, a line each, answered a line
    each.

    Several questions share one look at the sensors, which are most of a sample's tokens.
    """

    tokens: tuple[str, ...] = ()
    grammar: str | None = None

    def __init__(self, questions_per_sample: int = 1) -> None:
        if questions_per_sample < 1:
            raise ValueError(
                f"data.tasks.answer.questions_per_sample: {questions_per_sample}; ask at least one question"
            )
        self.questions_per_sample = questions_per_sample

    def supports(self, scene: Scene) -> bool:
        """At least one question."""
        return bool(scene.questions)

    def prompt(self, scene: Scene, draw: str) -> str:
        """See `Task`."""
        return "\n".join(q.question for q in self.questions(scene, draw))

    def conversation(self, scene: Scene, draw: str) -> Conversation:
        """See `Task`."""
        return Conversation(self.prompt(scene, draw), "\n".join(q.answer for q in self.questions(scene, draw)))

    def questions(self, scene: Scene, draw: str) -> list[Question]:
        """The questions that `prompt` asks, in order: neighbours in the scene's list, from a drawn one on."""
        count = len(scene.questions)
        first = fraction(draw, scene.id, "question", scale=count)
        return [scene.questions[(first + i) % count] for i in range(min(self.questions_per_sample, count))]

    def decode(self, answer: str, scene: Scene) -> str:
        """See `Task`: any text is an answer."""
        return answer

    def answers(self, answer: str, questions: Sequence[Question]) -> list[str]:
        """What `answer` says to each of `questions`: its lines, empty where there are too few."""
        lines = answer.split("\n")
        return [lines[i] if i < len(lines) else "" for i in range(len(questions))]


class Caption:
    """Captioning."""

    tokens: tuple[str, ...] = ()
    grammar: str | None = None

    def supports(self, scene: Scene) -> bool:
        """A caption."""
        return scene.caption is not None

    def prompt(self, scene: Scene, draw: str) -> str:
        """See `Task`."""
        return "Describe the scene in one sentence."

    def conversation(self, scene: Scene, draw: str) -> Conversation:
        """See `Task`."""
        return Conversation(self.prompt(scene, draw), scene.caption or "")

    def decode(self, answer: str, scene: Scene) -> str:
        """See `Task`: any text is a caption."""
        return answer


def _thinking_first(grammar: str) -> str:
    """The grammar of one line of free text, then what `grammar` accepts."""
    return f'start: THOUGHT "\\n" action\nTHOUGHT: /[^\\n<]{{1,200}}/\n{grammar.replace("start:", "action:", 1)}'


def fraction(*parts: object, scale: int) -> int:
    """A number in [0, scale) from a hash of `parts`: the same on every machine and after every restart."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") * scale >> 64


def choose_task(scene: Scene, tasks: dict[str, Task], weights: dict[str, float], draw: str) -> str | None:
    """The task that `scene` is used for in this pass, by a hash of `draw` and its id; None when it supports none of
    them.

    `weights` holds the shares of task names among `tasks`; those that the scene does not support leave their share to
    the others.
    """
    able = [(name, weight) for name, weight in weights.items() if tasks[name].supports(scene)]
    total = sum(weight for _, weight in able)
    if not able:
        return None
    at = fraction(draw, scene.id, "task", scale=1 << 32) / (1 << 32) * total
    for name, weight in able:
        at -= weight
        if at < 0:
            return name
    return able[-1][0]
