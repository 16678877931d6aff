"""Conversations of every form become dialogues, and what cannot be used is named with its file, line and reason."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from framework.data.shards.writer import Summary
from framework.data.sources.conversations import ConversationShards, split_of
from framework.data.stream.mixture import read_scenes
from framework.scene.dialogue import Dialogue
from framework.scene.types import Scene


def picture(color: int = 0, form: str = "PNG", size: tuple[int, int] = (64, 48)) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", size, (color, 0, 0)).save(written, format=form)
    return written.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the images a.png, b.jpg and c.webp."""
    folder = tmp_path / "conversations"
    (folder / "images").mkdir(parents=True)
    for name, form in (("a.png", "PNG"), ("b.jpg", "JPEG"), ("c.webp", "WEBP")):
        (folder / "images" / name).write_bytes(picture(form=form))
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


LLAVA = {
    "id": "one",
    "image": "images/a.png",
    "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "Black."}],
}


def test_a_row_of_llava_becomes_a_dialogue(folder: Path) -> None:
    ((scene,), summary) = read(shards(folder, LLAVA))
    (dialogue,) = dialogues([scene])
    assert [(turn.role, turn.parts) for turn in dialogue.turns] == [
        ("user", (0, "\nWhat is it?")),
        ("assistant", ("Black.",)),
    ]
    (medium,) = dialogue.media
    assert (medium.frames, medium.width, medium.height) == (((folder / "images" / "a.png").read_bytes(),), 64, 48)
    assert (scene.id, scene.kind) == ("rows.jsonl:1/one", "conversation")
    assert (summary.records, summary.skipped) == (1, [])


def test_a_row_that_cannot_be_used_is_named_and_the_others_are_kept(folder: Path) -> None:
    missing = {**LLAVA, "image": "images/gone.png"}
    ((scene,), summary) = read(shards(folder, missing, LLAVA))
    assert scene.id == "rows.jsonl:2/one"
    ((skipped,),) = [summary.skipped]
    assert skipped.reason.startswith(f"{folder / 'rows.jsonl'}:1: {folder / 'images' / 'gone.png'}: No such file")


def test_splits_have_nothing_in_common(folder: Path) -> None:
    rows = [{"id": f"r{n}", "conversations": LLAVA["conversations"], "image": "images/a.png"} for n in range(40)]
    sources = {split: shards(folder, *rows, split=split) for split in ("train", "held_out", "all")}
    ids = {split: {scene.id for scene in read(source)[0]} for split, source in sources.items()}
    assert not ids["train"] & ids["held_out"]
    assert ids["train"] | ids["held_out"] == ids["all"]
    assert len(ids["all"]) == 40
    assert 0 < len(ids["held_out"]) == sum(split_of(row) == "held_out" for row in rows) < 12
    surveys = {split: source.survey(4) for split, source in sources.items()}
    assert {split: survey.samples for split, survey in surveys.items()} == {s: len(each) for s, each in ids.items()}


def test_media_come_from_paths_bytes_and_data_urls(folder: Path) -> None:
    url = "data:image/png;base64," + base64.b64encode(picture(9)).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "and", "image": None},
        {"type": "image", "image": f"file://{folder}/images/c.webp", "text": None},
    ]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "Yes."}]}
    (dialogue,) = dialogues(read(shards(folder, row))[0])
    assert dialogue.turns[0].parts == (0, "and", 1)
    assert dialogue.media[0].frames[0] == picture(9)
    assert dialogue.media[1].frames[0].startswith(b"\x89PNG")
