"""Rows and files of conversations that are odd: each is counted or told in one line, and the others are kept."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from framework.data.sources.conversations import ConversationShards, split_of
from tests.data.sources.rows_of_talks import ASK, REPLY, A, dialogues, drawn, folder, read, shards

__all__ = ["folder"]  # a fixture


ODD = {
    "half an address": ('{"image": "http://[x/a.png", "messages": %s}', "is no address"),
    "letters that base64 lacks": ('{"image": "data:image/png;base64,é", "messages": %s}', "no base64"),
    "an id of half a character": ('{"id": "\\ud83d", "messages": [%s]}', "id: holds half of a character"),
    "a text of half a character": (
        '{"messages": [{"role": "user", "content": "\\ud83d"}, {"role": "assistant", "content": "x"}]}',
        r"turns\[0\].parts: hold half of a character"),
    "a deep list": ("[" * 100_000, "recursion"),
    "a number of many digits": ('{"id": ' + "9" * 5000 + "}", "integer string"),
}  # fmt: skip


UNSEEN = ["\u200b", "\ufeff \n", "\u2060" * 3, "\u202e\u2066\u2069", "\U000e0041\U000e007f", "\u2800", "\u3164", "\0"]


@pytest.mark.parametrize("split", ["all", "train"])
def test_a_row_that_no_library_takes_is_counted_and_the_others_are_kept(folder: Path, split: Any) -> None:
    image = json.dumps([{"role": "user", "content": "<image>"}, REPLY])
    lines = [line.replace("[%s]", json.dumps([ASK, REPLY])).replace("%s", image) for line, _ in ODD.values()]
    good = [json.dumps({"messages": [ASK, {**REPLY, "content": f"Hello {n}."}]}) for n in range(8)]
    (folder / "rows.jsonl").write_text("\n".join([*lines, *good]))
    scenes, summary = read(ConversationShards(str(folder), str(folder.parent / "cache"), workers=1, split=split))
    assert len(scenes) == (8 if split == "all" else sum(split_of(json.loads(row)) == split for row in good))
    reasons = " | ".join(skipped.reason for skipped in summary.skipped)
    assert split == "train" or len(summary.skipped) == len(ODD)
    for name, (_, reason) in ODD.items():
        assert split == "train" or re.search(reason, reasons), (name, reasons)
    str(summary).encode()


@pytest.mark.fault("answers that nobody sees")
def test_answers_and_questions_that_nobody_sees_are_skipped_by_file_line_and_field(folder: Path) -> None:
    rows = [{"messages": [ASK, {**REPLY, "content": unseen}]} for unseen in UNSEEN]
    rows += [{"messages": [{**ASK, "content": unseen}, REPLY]} for unseen in UNSEEN]
    shown = {"messages": [ASK, {**REPLY, "content": "\u200f\u05d0\U000e0041"}]}
    scenes, summary = read(shards(folder, *rows, shown))
    assert [talk.turns[1].text for talk in dialogues(scenes)] == ["\u200f\u05d0\U000e0041"]
    assert [skipped.source for skipped in summary.skipped] == [f"rows.jsonl:{1 + n}" for n in range(len(rows))]
    fields = [skipped.reason.partition(":")[0] for skipped in summary.skipped]
    assert fields == ["dialogue.turns[1]"] * len(UNSEEN) + ["dialogue.turns[0]"] * len(UNSEEN)


def test_what_tables_are_padded_with_says_nothing(folder: Path) -> None:
    def row(*texts: Any, **more: Any) -> dict[str, Any]:
        parts = [{"type": "text", "text": text} for text in texts]
        return {"messages": [{"role": "user", "content": parts}, REPLY], **more}

    rows = [row(None, "Hi."), row(None), row("Hi.", tools="[]"), row("Hi.", tools='[{"name": "f"}]'), row(3)]
    scenes, summary = read(shards(folder, *rows))
    assert [talk.turns[0].parts for talk in dialogues(scenes)] == [("Hi.",), ("Hi.",)]
    reasons = [skipped.reason.partition("rows.jsonl:")[2] or skipped.reason for skipped in summary.skipped]
    assert [reason for reason in reasons if "the user says nothing" in reason]
    assert [reason for reason in reasons if reason.startswith("4: tools: calls of tools are not learned")]
    assert "5: messages[0].content: the text of a part is a int, not a text" in reasons
    assert len(reasons) == 3


def test_an_image_of_no_format_is_told_alike_by_every_process(folder: Path) -> None:
    row = {"image": "rows.jsonl", "messages": [{"role": "user", "content": "<image>"}, REPLY]}
    _, summary = read(shards(folder, row, {"messages": [ASK, REPLY]}))
    (skipped,) = summary.skipped
    assert re.search(
        r": rows.jsonl: unreadable image \(none of [A-Z0-9, ]+\); fetch or encode it again$", skipped.reason
    )


def test_a_deep_list_in_a_file_of_json_leaves_the_other_files(folder: Path) -> None:
    (folder / "a.json").write_text("[" * 100_000)
    scenes, summary = read(shards(folder, {"messages": [ASK, REPLY]}))
    assert len(scenes) == 1
    (skipped,) = summary.skipped
    assert skipped.reason.startswith(f"{folder}/a.json: ")


def test_a_dataset_on_disk_has_the_files_of_its_state_alone(folder: Path) -> None:
    """`map` of Hugging Face writes its results next to the data."""
    table = pyarrow.Table.from_pylist([{"messages": [ASK, REPLY]}])
    for name in ("data-00000-of-00001.arrow", "cache-0123456789abcdef.arrow"):
        with pyarrow.ipc.new_stream(folder / name, table.schema) as stream:
            stream.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    scenes, _ = read(shards(folder, {"messages": [ASK, REPLY]}, name="MORE.JSONL"))
    assert [scene.id for scene in scenes] == ["MORE.JSONL:1", "data-00000-of-00001.arrow[0]"]


def test_links_are_followed_and_a_link_upwards_ends(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "rows.jsonl").write_text(json.dumps({"messages": [ASK, REPLY]}))
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "up").symlink_to(folder)
    (folder / "gone.jsonl").symlink_to(folder / "nothing.jsonl")
    scenes, _ = read(ConversationShards(str(folder), str(folder.parent / "cache"), workers=1))
    assert [scene.id for scene in scenes] == ["linked/rows.jsonl:1"]


@pytest.mark.parametrize("padding", ["", float("nan"), None])
def test_an_id_with_which_tables_are_padded_is_none(padding: Any, folder: Path) -> None:
    rows = [{"id": padding, "messages": [ASK, {"role": "assistant", "content": str(n)}]} for n in range(200)]
    assert {split_of(row) for row in rows} == {"train", "held_out"}
    scenes, _ = read(shards(folder, *rows[:2]))
    assert [scene.id for scene in scenes] == ["rows.jsonl:1", "rows.jsonl:2"]


def test_keys_that_nothing_reads_are_counted_by_name(folder: Path) -> None:
    part = {"type": "image", "image": A, "detail": "high", "text": None}
    row = {
        "conversations": [
            {"from": "human", "value": "Hi.", "name": ""},
            {"from": "gpt", "value": "Hello.", "reasoning_content": "They greet."},
        ],
        "messages": [ASK, REPLY],
        "audios": ["a.wav"],
        "videos": [],
    }
    scenes, summary = read(
        shards(folder, row, {"messages": [{"role": "user", "content": [part]}, REPLY], "audios": []})
    )
    assert len(scenes) == 2
    assert summary.dropped == {
        "key messages of a row is not read": 1,
        "key audios of a row is not read": 1,
        "key reasoning_content of a turn is not read": 1,
        "key detail of a part of image is not read": 1,
    }


def write_tar(path: Path, members: dict[str, bytes]) -> list[int]:
    """Writes a tar and returns where each member's header begins."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with tarfile.open(path) as tar:
        return [member.offset for member in tar]


def test_images_of_a_tar_are_in_the_order_of_their_numbers(folder: Path) -> None:
    turns = json.dumps({"messages": [{"role": "user", "content": "<image>" * 11}, REPLY]}).encode()
    images = {f"x.{number}.png": drawn(number) for number in (10, 2, 1, 0, 3, 4, 5, 6, 7, 8, 9)}
    write_tar(folder / "rows.TAR", {"x.json": turns, **images})
    scenes, _ = read(ConversationShards(str(folder), str(folder.parent / "cache"), workers=1))
    (talk,) = dialogues(scenes)
    assert [medium.frames[0] for medium in talk.media] == [drawn(number) for number in range(11)]


@pytest.mark.parametrize("cut", [0, 100, 512, 520])
def test_a_tar_that_is_cut_short_keeps_the_rows_before_the_cut(folder: Path, cut: int) -> None:
    """It is cut at, in and after the header of its last member, and in that member."""
    turns = json.dumps({"messages": [ASK, REPLY]}).encode()
    path = folder / "rows.tar"
    starts = write_tar(path, {f"{name}.json": turns for name in "xyz"})
    path.write_bytes(path.read_bytes()[: starts[-1] + cut])
    scenes, summary = read(ConversationShards(str(folder), str(folder.parent / "cache"), workers=1))
    assert [scene.provenance["log"] for scene in scenes] == ["x", "y"]
    (skipped,) = summary.skipped
    assert re.search(rf"^{path}: is cut short .*; the 2 rows before are read", skipped.reason), skipped.reason


def test_a_tar_with_a_broken_header_keeps_the_rows_before_it(folder: Path) -> None:
    turns = json.dumps({"messages": [ASK, REPLY]}).encode()
    path = folder / "rows.tar"
    starts = write_tar(path, {f"{name}.json": turns for name in "xyz"})
    content = bytearray(path.read_bytes())
    content[starts[1] : starts[1] + 512] = b"?" * 512
    path.write_bytes(content)
    scenes, summary = read(ConversationShards(str(folder), str(folder.parent / "cache"), workers=1))
    assert [scene.provenance["log"] for scene in scenes] == ["x"]
    assert len(summary.skipped) == 1
