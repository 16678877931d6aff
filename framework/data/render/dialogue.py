"""Renders dialogues with the chat template of the backbone, with labels on turns of the assistant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from framework.data.render.camera_view import CameraView
from framework.data.render.collate import MEDIA
from framework.data.render.sample import Rendered
from framework.scene.batch import IGNORE_INDEX
from framework.scene.dialogue import Dialogue, Medium, Turn
from framework.scene.types import SceneError

if TYPE_CHECKING:
    from framework.data.render.tasks import DialogueConversation

START, END = "<|im_start|>assistant", "<|im_end|>"
"""What ChatML, the form of all of Qwen's templates, writes around an assistant's turn. A line break follows `START`."""


class MediaRenderer(Protocol):
    """The backbone's template and processor, and how they are given images and videos (`ChatRenderer`)."""

    processor: Any
    """The backbone's processor."""
    tokenizer: Any
    """Its tokenizer."""
    control: list[str]
    """Tokens that only a template may write."""
    max_length: int
    """Tokens that a sample may have."""

    def view(self, name: str, camera: Medium, /) -> CameraView:
        """What is shown of a medium. Raises `SceneError`, which begins with `name`, where it cannot be read."""
        ...

    def process(self, prompt: str, views: list[CameraView], /) -> Any:
        """The processor's tensors for the prompt and the media."""
        ...


def render_dialogue(
    renderer: MediaRenderer, name: str, conversation: DialogueConversation, for_generation: bool
) -> Rendered:
    """Returns the dialogue of scene `name` rendered; with `for_generation` up to where its last answer starts.

    The ids are those of the processor's `apply_chat_template`. Learned is what the template writes in a turn of the
    assistant after its header, `END` included.

    Raises `SceneError` naming the scene: a control token in a text, an unreadable image or video, a template of another
    form, too many tokens.
    """
    dialogue = conversation.dialogue
    _check_control_tokens(renderer.control, name, dialogue)
    views = [renderer.view(f"scene {name}: medium {index}", medium) for index, medium in enumerate(dialogue.media)]
    if for_generation:
        dialogue = dialogue.first(len(dialogue.turns) - 1)
    while True:
        processed = _process(renderer, dialogue, views[: len(dialogue.media)], for_generation)
        ids = processed["input_ids"][0]
        if len(ids) <= renderer.max_length:
            break
        shorter = _cut(renderer, dialogue, ids) if conversation.cut and not for_generation else None
        if shorter is None:
            raise SceneError(
                f"scene {name}: {len(ids)} tokens, data.max_length is {renderer.max_length}: raise it, or let the task "
                "cut long dialogues where the first exchange fits"
            )
        dialogue = shorter
    labels = torch.full_like(ids, IGNORE_INDEX)
    if not for_generation:
        spans = answer_spans(renderer.tokenizer, ids)
        if len(spans) != len(dialogue.answers):
            raise SceneError(
                f"scene {name}: the backbone's chat template does not render each turn of the assistant as "
                f"{START!r}, a line break, the answer and {END!r}; use a template that does"
            )
        for start, end in spans if conversation.learn == "all" else spans[-1:]:
            labels[start:end] = ids[start:end]
    return Rendered(ids, labels, {key: processed[key] for key in MEDIA if key in processed})


def messages_of(dialogue: Dialogue, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the messages of `apply_chat_template`, without pixels. `kinds` are "image" or "video", of each medium."""
    return [{"role": turn.role, "content": _content(turn, kinds)} for turn in dialogue.turns]


def answer_spans(tokenizer: Any, ids: Tensor) -> list[tuple[int, int]]:
    """Returns the start and end of each answer in `ids` `(t,)`, `END` included.

    A token that holds the header's line break and whitespace of the answer belongs to the answer.
    """
    header = torch.tensor(tokenizer(START)["input_ids"])
    line_break, end_of_turn = tokenizer("\n")["input_ids"], tokenizer.convert_tokens_to_ids(END)
    ends = (ids == end_of_turn).nonzero()[:, 0].tolist()
    spans = []
    for start in (ids[: len(ids) - len(header)] == header[0]).nonzero()[:, 0].tolist():
        begin = start + len(header)
        if not ids[start:begin].equal(header):
            continue
        begin += ids[begin : begin + len(line_break)].tolist() == line_break
        if end := next((place + 1 for place in ends if place >= begin), None):
            spans.append((begin, end))
    return spans


def _process(renderer: MediaRenderer, dialogue: Dialogue, views: list[CameraView], for_generation: bool) -> Any:
    messages = messages_of(dialogue, ["video" if view.is_clip else "image" for view in views])
    text = renderer.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=for_generation)
    return renderer.process(text, views)


def _cut(renderer: MediaRenderer, dialogue: Dialogue, ids: Tensor) -> Dialogue | None:
    """Returns the dialogue up to the last answer but its own whose end `max_length` holds; None where there is none."""
    spans = answer_spans(renderer.tokenizer, ids)
    held = sum(end <= renderer.max_length for _, end in spans)
    held = min(held, len(dialogue.answers) - 1)
    return dialogue.first(dialogue.answers[held - 1] + 1) if held else None


def _content(turn: Turn, kinds: Sequence[str]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": part} if isinstance(part, str) else {"type": kinds[part]} for part in turn.parts]


def control_tokens(tokenizer: Any) -> list[str]:
    """Returns the tokens that only a template may write. Markup such as `<think>` is text."""
    added = tokenizer.added_tokens_decoder.values()
    return [str(token) for token in added if token.special or str(token).startswith("<|")]


def _check_control_tokens(control: Sequence[str], name: str, dialogue: Dialogue) -> None:
    """Raises `SceneError` for a text with a token of `control`."""
    for number, turn in enumerate(dialogue.turns):
        text = turn.text  # joined, as the template joins them
        for token in control:
            if token in text:
                raise SceneError(f"scene {name}: turn {number} holds the control token {token}; remove it")
