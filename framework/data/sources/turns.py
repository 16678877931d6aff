"""Turns of a conversation from a row in the forms of ShareGPT, LLaVA and OpenAI."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from framework.scene.types import SceneError

SPEAKERS = {
    "system": "system", "developer": "system",
    "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "model": "assistant", "chatgpt": "assistant",
}  # fmt: skip
"""Roles by the names that the forms give them, in lower case."""
PLACEHOLDER = re.compile(r"(<image>|<video>)")
KINDS = ("image", "video")
ROW_KEYS = frozenset(("id", "system", "tools", *KINDS, *(f"{kind}s" for kind in KINDS)))
"""Keys of rows that are read, in addition to that of the turns."""
LEARNED = ("weight", "loss", "train", "training")
"""Keys of turns that say, by 1 or true, whether an answer is learned."""
TURN_KEYS = frozenset(("role", "from", "content", "value", "tool_calls", "function_call", *LEARNED))
"""Keys of turns that are read."""
VALUES = ("url", "path", "bytes")
"""Keys of parts that hold a medium of any kind."""


class Reference(NamedTuple):
    """A medium that a row names or holds."""

    kind: str
    """One of `KINDS`."""
    value: Any
    """A path, a URL, bytes, a mapping with `bytes` or `path`, or for a video a list of these: its frames."""


@dataclass(slots=True)
class Conversation:
    """A row in one form."""

    turns: list[tuple[str, list[str | int]]]
    """Roles, and texts and numbers of media in order."""
    media: list[Reference]
    """The media in the order in which turns show them."""
    dropped: dict[str, int] = field(default_factory=dict)
    """What was left out, by name."""


def read_turns(row: Any) -> Conversation:
    """Returns the conversation of a row. The last turns without an answer are left out, and counted; so are keys that
    nothing is read from.

    Raises `SceneError` with the key and the remedy for a row of another form, a role that is unknown, a content that
    cannot be learned or is marked not to be, and placeholders that do not match the media.
    """
    if not isinstance(row, Mapping):
        raise SceneError(f"is a {type(row).__name__}, not an object with conversations or messages")
    row = {key: value for key, value in row.items() if value is not None}
    key, messages = _messages(row)
    if _holds_tools(row.get("tools")):
        raise SceneError("tools: calls of tools are not learned; drop the row, or write the calls as texts")
    left = {kind: iter(_column(row, kind)) for kind in KINDS}
    conversation = Conversation([], [])
    dropped = Counter(_unread("a row", row, ROW_KEYS | {key}))
    system = row.get("system", "")
    if not isinstance(system, str):
        raise SceneError(f"system: is a {type(system).__name__}, not a text; write the prompt as one text")
    if system and _begins_with_system(messages):
        dropped["system of a row whose first turn is the system's"] += 1
    elif system:
        conversation.turns.append(("system", [system]))
    for number, message in enumerate(messages):
        try:
            role, content = _role_and_content(message)
            parts = list(_parts(content, role, left, conversation.media))
            dropped.update(_unread("a turn", message, TURN_KEYS))
            dropped.update(_unread_of_parts(content))
        except SceneError as error:
            raise SceneError(f"{key}[{number}]{error}") from error
        conversation.turns.append((role, parts))
    for kind, references in left.items():
        if rest := len(list(references)):
            placed = sum(reference.kind == kind for reference in conversation.media)
            raise SceneError(
                f"{key}: {placed} placeholders <{kind}> for {placed + rest} {kind}s; write one where each is shown"
            )
    conversation = _without_unanswered(conversation)
    conversation.dropped |= dropped
    return conversation


def _holds_tools(tools: Any) -> bool:
    """Whether a row offers tools; tables may hold an empty list as text."""
    return bool(_from_json(tools) if isinstance(tools, str) and _from_json(tools) in ([], {}) else tools)


def _unread(what: str, keys: Mapping[Any, Any], known: Collection[str]) -> list[str]:
    """Returns how the report names the keys that hold something and are not `known`."""
    unknown = [key for key, value in keys.items() if key not in known and not _is_empty(value)]
    return [f"key {key} of {what} is not read" for key in unknown]


def _is_empty(value: Any) -> bool:
    """Whether a value is one with which tables are padded."""
    return value is None or (isinstance(value, str | bytes | Sequence | Mapping) and not value)


def _messages(row: Mapping[str, Any]) -> tuple[str, Sequence[Any]]:
    for key in ("conversations", "messages"):
        if key in row:
            turns = _from_json(row[key]) if isinstance(row[key], str) else row[key]
            if not isinstance(turns, list) or not turns:
                raise SceneError(f"{key}: is no list of turns, or empty; give the turns")
            return key, turns
    raise SceneError(f"has neither conversations nor messages, but {', '.join(map(str, row)) or 'nothing'}")


def _from_json(text: str) -> Any:
    """Returns what a text holds that a table has in place of turns; None where it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _column(row: Mapping[str, Any], kind: str) -> list[Reference]:
    """Returns the media that a row lists apart from its turns: `image`, `images`, or both."""
    references = []
    for key in (kind, f"{kind}s"):
        value = row.get(key)
        values = value if isinstance(value, list) else [value]
        references += [Reference(kind, each) for each in values if each is not None and each != ""]
    return references


def _begins_with_system(messages: Sequence[Any]) -> bool:
    first = messages[0]
    return isinstance(first, Mapping) and SPEAKERS.get(str(_speaker(first)).lower()) == "system"


def _speaker(message: Mapping[str, Any]) -> Any:
    """Returns who speaks. A key without a value, with which tables are padded, is none."""
    return message.get("role") if message.get("role") is not None else message.get("from")


def _role_and_content(message: Any) -> tuple[str, Any]:
    if not isinstance(message, Mapping):
        raise SceneError(f": is a {type(message).__name__}, not an object with a role and a content")
    name = _speaker(message)
    role = SPEAKERS.get(str(name).lower())
    if role is None:
        raise SceneError(f".role: {name!r} is unknown; use one of {', '.join(SPEAKERS)}")
    if message.get("tool_calls") or message.get("function_call"):
        raise SceneError(".tool_calls: calls of tools are not learned; drop the row, or write the calls as texts")
    for key in LEARNED if role == "assistant" else ():
        if message.get(key) not in (None, 1):
            raise SceneError(
                f".{key}: {message[key]!r}: every answer of a row is learned alike; end the row before this one, or "
                "write weight 1"
            )
    content = message.get("content") if message.get("content") is not None else message.get("value")
    if not isinstance(content, str | list):
        raise SceneError(f".content: is a {type(content).__name__}, not a text or a list of parts")
    return role, content


def _parts(
    content: str | list[Any], role: str, left: Mapping[str, Iterator[Reference]], media: list[Reference]
) -> Iterator[str | int]:
    """Yields the texts of a content and the numbers of its media, which are appended to `media`.

    A user's text has a placeholder for each medium of the row's columns. Anybody else's is text to the letter.
    """
    pieces = _pieces(content, role) if isinstance(content, str) else (_part(part) for part in content)
    for piece in pieces:
        if isinstance(piece, str):
            if piece:
                yield piece
            continue
        reference = piece if piece.value is not None else next(left[piece.kind], None)
        if reference is None:
            raise SceneError(
                f".content: a placeholder <{piece.kind}> for which the row has no {piece.kind}; remove it, list the "
                f"{piece.kind}, or put a literal one in a part of type text"
            )
        media.append(reference)
        yield len(media) - 1


def _pieces(text: str, role: str) -> Iterator[str | Reference]:
    """Yields the texts of a string, and a reference without a value for each placeholder."""
    for piece in PLACEHOLDER.split(text) if role == "user" else [text]:
        yield Reference(piece.strip("<>"), None) if PLACEHOLDER.fullmatch(piece) and role == "user" else piece


def _part(part: Any) -> str | Reference:
    """Returns a part of a content. Keys without a value, with which tables are padded, are none."""
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise SceneError(f".content: a part is a {type(part).__name__}, not an object with a type")
    part = {key: value for key, value in part.items() if value is not None}
    kind = _kind_of(part)
    if len(held := [each for each in ("text", *KINDS) if part.get(each) or part.get(f"{each}_url")]) > 1:
        raise SceneError(f".content: a part holds {' and '.join(held)}; write a part for each")
    if kind == "text":
        text = part.get("text", "")
        if not isinstance(text, str):
            raise SceneError(f".content: the text of a part is a {type(text).__name__}, not a text")
        return text
    if kind not in KINDS:
        raise SceneError(f".content: a part of type {part.get('type')!r}; use text, image, image_url or video")
    values = (part.get(key) for key in (kind, f"{kind}_url", *VALUES))
    value = next((value for value in values if value is not None), None)
    return Reference(kind, value["url"] if isinstance(value, Mapping) and "url" in value else value)


def _kind_of(part: Mapping[str, Any]) -> str:
    """Returns the kind of a part: its type, else the first of the kinds that is one of its keys."""
    keys = {key for key, value in part.items() if value is not None}
    named = next((kind for kind in ("text", *KINDS) if keys & {kind, f"{kind}_url"}), None)
    return str(part["type"] if "type" in keys else named).removesuffix("_url").removeprefix("input_")


def _unread_of_parts(content: str | list[Any]) -> Iterator[str]:
    for part in content if isinstance(content, list) else []:
        if isinstance(part, Mapping):
            kind = _kind_of(part)
            read = ("type", kind) if kind == "text" else ("type", kind, f"{kind}_url", *VALUES)
            yield from _unread(f"a part of {kind}", part, read)


def _without_unanswered(conversation: Conversation) -> Conversation:
    answers = [number for number, (role, _) in enumerate(conversation.turns) if role == "assistant"]
    if not answers:
        raise SceneError("has no answer: no turn is the assistant's; drop the row or add one")
    if unanswered := conversation.turns[answers[-1] + 1 :]:
        conversation.dropped = {"turns after the last answer": len(unanswered)}
        del conversation.turns[answers[-1] + 1 :]
        shown = sum(not isinstance(part, str) for _, parts in conversation.turns for part in parts)
        del conversation.media[shown:]
    return conversation
