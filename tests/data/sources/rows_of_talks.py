"""Folders of conversations that tests write, and what is read of them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from framework.data.shards.writer import Summary
from framework.data.sources.conversations import ConversationShards
from framework.data.stream.mixture import read_scenes
from framework.scene.dialogue import Dialogue
from framework.scene.types import Scene

ASK = {"role": "user", "content": "Hi."}
REPLY = {"role": "assistant", "content": "Hello."}
A, B = "images/a.png", "images/b.jpg"


def drawn(color: int = 0, form: str = "PNG", size: tuple[int, int] = (64, 48)) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", size, (color, 0, 0)).save(written, format=form)
    return written.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the images a.png, b.jpg and c.webp."""
    folder = tmp_path / "conversations"
    (folder / "images").mkdir(parents=True)
    for name, form in (("a.png", "PNG"), ("b.jpg", "JPEG"), ("c.webp", "WEBP")):
        (folder / "images" / name).write_bytes(drawn(form=form))
    return folder


def shards(folder: Path, *rows: Any, name: str = "rows.jsonl", **arguments: Any) -> ConversationShards:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ConversationShards(str(folder), str(folder.parent / "cache"), workers=1, **arguments)


def read(source: ConversationShards) -> tuple[list[Scene], Summary]:
    scenes = list(read_scenes(source))
    return scenes, Summary.read(source.folder / "manifest.json")


def dialogues(scenes: list[Scene]) -> Iterator[Dialogue]:
    for scene in scenes:
        assert scene.dialogue is not None
        yield scene.dialogue
