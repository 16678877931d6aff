"""Tasks: each turns a scene into a prompt for the model and the answer to learn."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from framework.recipe.component import component
from framework.recipe.ranges import PositiveCount
from framework.scene.codec import ActionCodec, BoxCodec
from framework.scene.dialogue import Dialogue
from framework.scene.types import Boxes, Question, Scene, Trajectory

Learned = Literal["all", "last"]


@dataclass(frozen=True, slots=True)
class Conversation:
    """One exchange between user and assistant."""

    prompt: str
    """The text after the sensors in the user's turn."""
    answer: str
    """The assistant's turn."""
    special: tuple[str, ...] = ()
    """Special tokens that the answer may contain. Any other special token in either text is an error."""


@dataclass(frozen=True, slots=True)
class DialogueConversation(Conversation):
    """A whole dialogue, of which `prompt` and `answer` are the last exchange's texts."""

    dialogue: Dialogue = field(kw_only=True)
    """The dialogue."""
    learn: Learned = field(kw_only=True)
    """Which answers are learned."""
    cut: bool = field(kw_only=True)
    """Whether whole exchanges are cut from the end of a dialogue that is too long."""


class Task(Protocol):
    """A use of a scene: a prompt, and the answer to it."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """The special tokens of its answers."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields of a scene that it cannot do without: `check` compares them with what sources lack."""
        ...

    @property
    def grammar(self) -> str | None:
        """The form of its answers, a Lark grammar; None for free text."""
        ...

    def supports(self, scene: Scene) -> bool:
        """Returns whether the scene has what the task needs."""
        ...

    def prompt(self, scene: Scene, draw: str) -> str:
        """Returns the user's text, even for a scene without an answer. Where there is a choice, of questions say, a
        hash of `draw` and the scene's id makes it.
        """
        ...

    def conversation(self, scene: Scene, draw: str) -> Conversation:
        """Returns the prompt and its answer."""
        ...

    def decode(self, answer: str, scene: Scene) -> Trajectory | Boxes | str | None:
        """Returns the meaning of an answer; None when it is malformed."""
        ...


@component
class Drive:
    """Behaviour cloning: the command is the prompt, the expert's future the answer.

    Args:
        codec: Spells a trajectory as text, and decodes it.
        reason: Whether the scene's thought precedes the trajectory, on a line of its own.
        instruct: Whether the prompt states the answer's form, its units and its frame. A model that is trained from
            scratch learns them from the answers, and steps are cheaper.
    """

    def __init__(self, codec: ActionCodec, reason: bool = False, instruct: bool = True) -> None:
        self.codec = codec
        self.reason = reason
        self.instruct = instruct
        self.tokens = codec.tokens
        self.grammar = _thinking_first(codec.grammar) if reason else codec.grammar

    @property
    def needs(self) -> tuple[str, ...]:
        """A history, a future, and a thought when `reason` is set."""
        return ("history", "future", "thought") if self.reason else ("history", "future")

    def supports(self, scene: Scene) -> bool:
        """See `Task`."""
        return has(scene, self.needs)

    def prompt(self, scene: Scene, draw: str) -> str:
        """See `Task`."""
        prompt = f"Command: {scene.command}."
        if self.instruct:
            prompt = f"{prompt} {self.codec.instruction}"
        return f"{prompt} Think first." if self.reason else prompt

    def conversation(self, scene: Scene, draw: str) -> Conversation:
        """See `Task`."""
        answer = self.codec.encode(scene)
        if self.reason:
            answer = f"{scene.thought}\n{answer}"
        return Conversation(self.prompt(scene, draw), answer, self.tokens)

    def decode(self, answer: str, scene: Scene) -> Trajectory | None:
        """Returns the trajectory, which follows the thought; None when it is malformed."""
        return self.codec.decode(answer.rpartition("\n")[2], scene)

    def thought(self, answer: str) -> str | None:
        """Returns the thought of an answer; None unless `reason` is set."""
        return answer.rpartition("\n")[0] if self.reason else None


@component
class Detect:
    """Three-dimensional detection of all annotated boxes that a sensor has a point in: the score counts no others.

    Args:
        codec: Spells boxes as text, and decodes them.
        instruct: Whether the prompt states the answer's form, see `Drive`.
    """

    def __init__(self, codec: BoxCodec, instruct: bool = True) -> None:
        self.codec = codec
        self.instruct = instruct
        self.tokens = codec.tokens
        self.grammar = codec.grammar

    @property
    def needs(self) -> tuple[str, ...]:
        """Boxes, and what the codec refers to."""
        return ("boxes", *self.codec.needs)

    def supports(self, scene: Scene) -> bool:
        """Returns whether the scene is annotated with boxes, possibly none. Without what the codec refers to it can be
        asked and scored, but not taught: see `choose_task`.
        """
        return has(scene, ("boxes",))

    def prompt(self, scene: Scene, draw: str) -> str:
        """See `Task`."""
        return f"Detect all objects. {self.codec.instruction}" if self.instruct else "Detect all objects."

    def conversation(self, scene: Scene, draw: str) -> Conversation:
        """See `Task`."""
        assert scene.boxes is not None
        answer = self.codec.encode(scene.boxes.visible(), scene.perception)
        return Conversation(self.prompt(scene, draw), answer, self.tokens)

    def decode(self, answer: str, scene: Scene, logprobs: Sequence[float] | None = None) -> Boxes | None:
        """See `Task`. With the log-probability of each token of the answer, boxes have confidences where the codec can
        read them.
        """
        return self.codec.decode(answer, scene.perception, logprobs)


@component
class Answer:
    """Visual question answering, with one line a question and one line an answer.

    Args:
        questions_per_sample: Questions of a prompt. Several share the sensors, which are most of a sample's tokens.

    Raises:
        ValueError: `questions_per_sample` is less than 1.
    """

    tokens: tuple[str, ...] = ()
    needs: tuple[str, ...] = ("questions",)
    grammar: str | None = None

    def __init__(self, questions_per_sample: PositiveCount = 1) -> None:
        if questions_per_sample < 1:
            raise ValueError(
                f"data.tasks.answer.questions_per_sample: {questions_per_sample}; ask at least one question"
            )
        self.questions_per_sample = questions_per_sample

    def supports(self, scene: Scene) -> bool:
        """Returns whether the scene has a question."""
        return has(scene, self.needs)

    def prompt(self, scene: Scene, draw: str) -> str:
        """See `Task`."""
        return "\n".join(q.question for q in self.questions(scene, draw))

    def conversation(self, scene: Scene, draw: str) -> Conversation:
        """See `Task`."""
        return Conversation(self.prompt(scene, draw), "\n".join(q.answer for q in self.questions(scene, draw)))

    def questions(self, scene: Scene, draw: str) -> list[Question]:
        """Returns the questions of the prompt in order: neighbours in the scene's list, from a drawn one on."""
        count = len(scene.questions)
        first = fraction(draw, scene.id, "question", scale=count)
        return [scene.questions[(first + i) % count] for i in range(min(self.questions_per_sample, count))]

    def decode(self, answer: str, scene: Scene) -> str:
        """Returns the answer itself: any text is one."""
        return answer

    def answers(self, answer: str, questions: Sequence[Question]) -> list[str]:
        """Returns the line of `answer` for each of `questions`, empty where it has too few."""
        lines = answer.split("\n")
        return [lines[i] if i < len(lines) else "" for i in range(len(questions))]


@component
class Caption:
    """Captioning: a description of the scene in one sentence."""

    tokens: tuple[str, ...] = ()
    needs: tuple[str, ...] = ("caption",)
    grammar: str | None = None

    def supports(self, scene: Scene) -> bool:
        """Returns whether the scene has a caption."""
        return has(scene, self.needs)

    def prompt(self, scene: Scene, draw: str) -> str:
        """See `Task`."""
        return "Describe the scene in one sentence."

    def conversation(self, scene: Scene, draw: str) -> Conversation:
        """See `Task`."""
        return Conversation(self.prompt(scene, draw), scene.caption or "")

    def decode(self, answer: str, scene: Scene) -> str:
        """Returns the answer itself: any text is a caption."""
        return answer


@component
class Converse:
    """Dialogues as they are, with their images and videos, in the form of the backbone's chat template.

    Args:
        learn: The turns of the assistant that are learned: "all", or the "last" one.
        cut: Whether a dialogue of more than `data.max_length` tokens is cut after the last answer that fits, with the
            images of the turns that are cut. Otherwise, and where the first answer does not fit, it is quarantined.
    """

    tokens: tuple[str, ...] = ()
    needs: tuple[str, ...] = ("dialogue",)
    grammar: str | None = None

    def __init__(self, learn: Learned = "all", cut: bool = False) -> None:
        self.learn: Learned = learn
        self.cut = cut

    def supports(self, scene: Scene) -> bool:
        """Returns whether the scene is a dialogue."""
        return has(scene, self.needs)

    def prompt(self, scene: Scene, draw: str) -> str:
        """Returns what precedes the last answer, the texts alone."""
        assert scene.dialogue is not None
        return "\n".join(turn.text for turn in scene.dialogue.turns[:-1])

    def conversation(self, scene: Scene, draw: str) -> DialogueConversation:
        """See `Task`."""
        dialogue = scene.dialogue
        assert dialogue is not None
        prompt, answer = self.prompt(scene, draw), dialogue.turns[-1].text
        return DialogueConversation(prompt, answer, dialogue=dialogue, learn=self.learn, cut=self.cut)

    def decode(self, answer: str, scene: Scene) -> str:
        """Returns the answer itself: any text is one."""
        return answer


def has(scene: Scene, fields: Sequence[str]) -> bool:
    """Returns whether a scene has all of `fields`, the names of its own."""
    return all(getattr(scene, field) is not None and getattr(scene, field) != () for field in fields)


def decode_answer(task: Task, text: str, scene: Scene, logprobs: Sequence[float]) -> Trajectory | Boxes | str | None:
    """Returns the meaning of an answer, of boxes with the confidences that its tokens' log-probabilities give."""
    return task.decode(text, scene, logprobs) if isinstance(task, Detect) else task.decode(text, scene)


def _thinking_first(grammar: str) -> str:
    """Returns the grammar of a line of free text followed by what `grammar` accepts."""
    return f'start: THOUGHT "\\n" action\nTHOUGHT: /[^\\n<]{{1,200}}/\n{grammar.replace("start:", "action:", 1)}'


def fraction(*parts: object, scale: int) -> int:
    """Returns a number in [0, scale) from a hash of `parts`, the same on every machine and after every restart."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") * scale >> 64


def teaches(task: Task, scene: Scene) -> bool:
    """Returns whether a scene has the answer to a task, and what the answer refers to."""
    return task.supports(scene) and has(scene, task.needs)


def choose_task(scene: Scene, tasks: dict[str, Task], weights: dict[str, float], draw: str) -> str | None:
    """Returns the name of the task that `scene` is used for in this pass, drawn by a hash of `draw` and the scene's id;
    None when it supports none. A scene without what a task `needs` teaches nothing of it.

    `weights` are the shares of the tasks by name. The share of those that the scene does not support goes to the
    others.
    """
    supported = [(name, weight) for name, weight in weights.items() if teaches(tasks[name], scene)]
    total = sum(weight for _, weight in supported)
    if not supported:
        return None
    point = fraction(draw, scene.id, "task", scale=1 << 32) / (1 << 32) * total
    for name, weight in supported:
        point -= weight
        if point < 0:
            return name
    return supported[-1][0]
