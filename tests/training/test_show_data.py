"""`show-data` writes a page of a source's samples with pictures, tokens and reasons."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from framework.__main__ import main

SMALL = ("scale=tiny", "sources.world_train.scenes=8")


def shown(source: str, folder: Path, *words: str) -> str:
    page = folder / "page.html"
    assert main(["show-data", f"source={source}", f"page={page}", f"paths.cache={folder}/cache", *SMALL, *words]) == 0
    return page.read_text(encoding="utf-8")


def test_driving_shows_camera_path_boxes_and_every_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = shown("world_train", tmp_path, "scenes=2")
    printed = capsys.readouterr().out
    assert "2 of 8 scenes of world_train" in printed
    assert "drive: 2 samples of " in printed
    assert page.count('class="birds-eye"') == 2
    assert page.count("data:image/jpeg") == 2
    for task in ("drive", "reason", "detect", "answer", "caption"):
        assert page.count(f"<b>{task}</b>") == 2
    assert "<mark>" in page
    assert page.count("no sample of converse; the scene lacks dialogue") == 2
    assert page.count("<figcaption>front, 96 × 64</figcaption>") == 2
    assert "&lt;|image_pad|&gt; × " in page


def test_what_is_too_long_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = shown("world_train", tmp_path, "scenes=1", "data.max_length=100", "data.pack=null")
    assert "1 refused" in capsys.readouterr().out
    assert "tokens, data.max_length is 100: raise it" in page


def test_conversations_show_their_media_and_both_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "conversations"
    folder.mkdir()
    Image.new("RGB", (64, 48), (200, 60, 40)).save(folder / "red.png")
    said = ["<image>\nWhat colour?", "It is <b>red</b>.", "Sure?", "Yes."]
    turns = [{"from": "gpt" if index % 2 else "human", "value": text} for index, text in enumerate(said)]
    (folder / "some.json").write_text(json.dumps([{"image": "red.png", "conversations": turns}]))
    monkeypatch.setenv("CONVERSATIONS", str(folder))
    page = shown("conversations", tmp_path)
    assert page.count("data:image/jpeg") == 1
    assert page.count("<mark>") == 2
    assert "It is &lt;b&gt;red&lt;/b&gt;." in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "source=NAME is needed"),
        (["source=wrld_train"], "did you mean world_train?"),
        (["source=world_train", "scenes=none"], "scenes: none: give a number of scenes"),
        (["source=recordings", "paths.recordings=nowhere"], "sources.recordings: nowhere: is no folder"),
    ],
)
@pytest.mark.fast_cases(1)
def test_what_cannot_be_shown_is_one_error(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["show-data", *words, "scale=tiny", f"page={tmp_path}/page.html"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
