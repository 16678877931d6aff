"""OpenAI's chat completions: requests with images as dialogues, and answers in their form."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from framework.data.render.tasks import Converse
from framework.scene.check_dialogue import dialogue_problems
from framework.scene.dialogue import ROLES, Dialogue, Medium, Turn
from framework.scene.image import read_image
from framework.scene.types import Scene, SceneError
from framework.serving.fields import FieldError, decoded, items, mapping, number, text
from framework.training.ask import Reply

KEYS = ("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "n", "stream", "response_format",
        "seed", "user", "top_p", "stop")  # fmt: skip
"""Fields of a request that are known; `seed`, `user` and `top_p` change nothing of a greedy answer."""
MOST_MESSAGES = 200
MOST_IMAGES = 32
MOST_TEXT = 1 << 19
"""The most characters of a dialogue: the model's thread tokenizes them, and no other request is answered meanwhile."""
DEEPEST = 32
"""The deepest JSON schema of an answer."""
ANSWER = "…"
"""Stands for the answer that is to come: a dialogue ends with the assistant's turn, which is not shown."""


class Chat(Converse):
    """A dialogue to go on with.

    Args:
        grammar: The form of the answer, a Lark grammar; None for free text.
    """

    def __init__(self, grammar: str | None) -> None:
        super().__init__()
        self.grammar = grammar


def parse_chat(request: Any, limit: int) -> tuple[Scene, Chat, int]:
    """The dialogue of a request, its task, and the token limit of the answer.

    Args:
        request: The request's JSON.
        limit: The most tokens of an answer.

    Raises `FieldError` for a field that cannot be used.
    """
    given = mapping(request, "", KEYS)
    for key, only, remedy in (
        ("temperature", (0,), "answers are greedy: give 0, or leave it out"),
        ("n", (1,), "there is one answer: give 1, or leave it out"),
        ("stream", (False,), "answers come whole: give false, or leave it out"),
        ("stop", ([],), "answers end by themselves: leave it out"),
    ):
        if given.get(key) is not None and given[key] not in only:
            raise FieldError(key, f"{json.dumps(given[key])[:100]} is not supported; {remedy}")
    tokens = next((given[key] for key in ("max_completion_tokens", "max_tokens") if given.get(key) is not None), limit)
    wanted = number(tokens, "max_tokens")
    if not 1 <= wanted <= limit or wanted != int(wanted):
        raise FieldError("max_tokens", f"{wanted:g}; give a whole number from 1 to {limit}")
    dialogue = _dialogue(items(given.get("messages"), "messages", MOST_MESSAGES))
    scene = Scene(id="request", kind="request", dialogue=dialogue)
    return scene, Chat(_grammar(given.get("response_format"))), int(wanted)


def refuse_other_model(request: Any, served: str) -> None:
    """Raise `FieldError`, 404 as OpenAI's, for a request to another model than the one that is served as NAME@STEP, or
    by NAME alone.
    """
    wanted = request.get("model") if isinstance(request, dict) else None
    names = (served, served.rpartition("@")[0])
    if wanted is not None and text(wanted, "model", 1000) not in names:
        raise FieldError("model", f"{wanted[:100]!r} is not served; this is {served}", 404)


def completion(reply: Reply, words: str, limit: int, model: str) -> dict[str, Any]:
    """The response of `chat.completions`. `words` are the answer's text, cut at `limit` tokens."""
    cut, made = len(reply.tokens) > limit or not reply.complete, min(len(reply.tokens), limit)
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": words},
            "finish_reason": "length" if cut else "stop",
            "logprobs": None,
        }],
        "usage": {"prompt_tokens": reply.prompt_tokens, "completion_tokens": made,
                  "total_tokens": reply.prompt_tokens + made},
    }  # fmt: skip


def _dialogue(messages: Any) -> Dialogue:
    turns, media = list[Turn](), list[Medium]()
    for index, message in enumerate(messages):
        field = f"messages[{index}]"
        given = mapping(message, field, ("role", "content", "name"))
        role = text(given.get("role"), f"{field}.role", 20)
        if role not in ROLES:
            raise FieldError(f"{field}.role", f"{role!r} is unknown; use one of {', '.join(ROLES)}")
        turns.append(Turn(role, tuple(_parts(given.get("content"), f"{field}.content", media))))
    if not turns or turns[-1].role != "user":
        raise FieldError("messages", "the last one is not the user's; end with what is asked")
    if (size := sum(len(turn.text) for turn in turns)) > MOST_TEXT:
        raise FieldError("messages", f"have {size} characters; give {MOST_TEXT} at most")
    dialogue = Dialogue((*turns, Turn("assistant", (ANSWER,))), tuple(media))
    if problem := next(dialogue_problems(dialogue), None):
        field, _, message = problem.partition(": ")
        raise FieldError(field.replace("dialogue.turns", "messages").replace(".parts", ".content"), message)
    return dialogue


def _parts(content: Any, field: str, media: list[Medium]) -> list[str | int]:
    """The parts of a message; its images are added to `media`."""
    if isinstance(content, str):
        return [text(content, field)]
    parts = list[str | int]()
    for index, part in enumerate(items(content, field, MOST_MESSAGES)):
        here = f"{field}[{index}]"
        given = mapping(part, here, ("type", "text", "image_url"))
        if given.get("type") == "text":
            parts.append(text(given.get("text"), f"{here}.text"))
        elif given.get("type") == "image_url":
            if len(media) == MOST_IMAGES:
                raise FieldError(here, f"is image {MOST_IMAGES + 1}; send {MOST_IMAGES} at most")
            parts.append(len(media))
            media.append(_image(mapping(given.get("image_url"), f"{here}.image_url", ("url", "detail")), here))
        else:
            raise FieldError(f"{here}.type", "is neither text nor image_url; there are no others")
    return parts


def _image(given: Mapping[str, Any], field: str) -> Medium:
    url = text(given.get("url"), f"{field}.image_url.url", 1 << 26)
    if not url.startswith("data:"):
        raise FieldError(
            f"{field}.image_url.url", "is no data: URI; this server fetches nothing: send the image itself"
        )
    encoded = decoded(url, f"{field}.image_url.url")
    try:
        image = read_image(encoded)
    except SceneError as error:
        raise FieldError(f"{field}.image_url.url", str(error)) from error
    return Medium((encoded,), np.zeros(1), image.width, image.height)


def _grammar(value: Any) -> str | None:
    """The grammar of OpenAI's `response_format`."""
    if value is None:
        return None
    given = mapping(value, "response_format", ("type", "json_schema"))
    if given.get("type") == "text":
        return None
    if given.get("type") == "json_object":
        return _json({"type": "object"})
    if given.get("type") == "json_schema":
        schema = mapping(
            given.get("json_schema"), "response_format.json_schema", ("name", "schema", "strict", "description")
        )
        if not isinstance(schema.get("schema"), dict):
            raise FieldError("response_format.json_schema.schema", "is no object; give a JSON schema")
        if _depth(schema["schema"]) > DEEPEST:
            raise FieldError("response_format.json_schema.schema", f"is nested more than {DEEPEST} levels; flatten it")
        return _json(schema["schema"])
    raise FieldError("response_format.type", "is unknown; use text, json_object or json_schema")


def _json(schema: Mapping[str, Any]) -> str:
    """The grammar of a schema's JSON without blanks between its parts, of which an answer could hold any number."""
    return f"start: %json {json.dumps({**schema, 'x-guidance': {'whitespace_flexible': False}})}\n"


def _depth(value: Any) -> int:
    """How deeply a JSON value is nested."""
    depth, level = 0, [value]
    while level:
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [one for each in inner for one in each]
        depth += 1
    return depth
