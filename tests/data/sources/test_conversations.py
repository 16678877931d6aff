"""Conversations of every form become dialogues, and what cannot be used is named with its file, line and reason."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from streaming import MDSWriter

from framework.data.shards.record import decode, encode
from framework.data.sources.conversations import ConversationShards, split_of
from framework.scene.types import SceneError
from framework.scene.video import decode_clip, encode_clip
from tests.data.scenes import same
from tests.data.sources.rows_of_talks import ASK, REPLY, A, B, dialogues, drawn, folder, read, shards
from tests.dialogues import dialogue, film, picture, scene_of

__all__ = ["folder"]  # a fixture

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
    url = "data:image/png;base64," + base64.b64encode(drawn(9)).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "and", "image": None},
        {"type": "image", "image": f"file://{folder}/images/c.webp", "text": None},
    ]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "Yes."}]}
    (dialogue,) = dialogues(read(shards(folder, row))[0])
    assert dialogue.turns[0].parts == (0, "and", 1)
    assert dialogue.media[0].frames[0] == drawn(9)
    assert dialogue.media[1].frames[0].startswith(b"\x89PNG")


HI = [("user", ("Hi.",)), ("assistant", ("Hello.",))]
USED: dict[str, tuple[Any, list[tuple[str, tuple[Any, ...]]], int]] = {
    "openai": ({"messages": [ASK, REPLY]}, HI, 0),
    "developer": ({"messages": [{"role": "developer", "content": "S"}, ASK, REPLY]}, [("system", ("S",)), *HI], 0),
    "system column": ({"system": "S", "messages": [ASK, REPLY]}, [("system", ("S",)), *HI], 0),
    "empty system column": ({"system": "", "messages": [ASK, REPLY]}, HI, 0),
    "padded turns and a column": (
        {"system": "S", "messages": [
            {"role": None, "content": None, "from": "system", "value": "T"},
            {"role": None, "content": None, "from": "human", "value": "Hi."},
            {"role": None, "content": None, "from": "gpt", "value": "Hello.", "weight": None}]},
        [("system", ("T",)), *HI], 0),
    "a system turn beats the column": (
        {"system": "S", "conversations": [{"from": "system", "value": "T"}, {"from": "human", "value": "Hi."},
                                          {"from": "gpt", "value": "Hello."}]},
        [("system", ("T",)), *HI], 0),
    "an empty system turn": ({"messages": [{"role": "system", "content": ""}, ASK, REPLY]}, [("system", ()), *HI], 0),
    "capitals": ({"conversations": [{"from": "Human", "value": "Hi."}, {"from": "GPT", "value": "Hello."}]}, HI, 0),
    "no image": ({"image": None, "images": [], "messages": [ASK, REPLY]}, HI, 0),
    "an empty image": ({"image": "", "messages": [ASK, REPLY]}, HI, 0),
    "two users, two answers": ({"messages": [ASK, ASK, REPLY, REPLY]}, [HI[0], HI[0], HI[1], HI[1]], 0),
    "texts as parts": ({"messages": [{"role": "user", "content": ["H", {"type": "text", "text": "i."}]}, REPLY]},
                       [("user", ("H", "i.")), HI[1]], 0),
    "placeholders in a string": (
        {"images": [A, B], "messages": [{"role": "user", "content": "<image>x<image>"}, REPLY]},
        [("user", (0, "x", 1)), HI[1]], 2),
    "placeholders in two turns": (
        {"images": [A, B], "messages": [{"role": "user", "content": "<image>"}, REPLY,
                                        {"role": "user", "content": "and <image>"}, REPLY]},
        [("user", (0,)), HI[1], ("user", ("and ", 1)), HI[1]], 2),
    "parts without a value take the column's": (
        {"images": [A], "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x"}]},
                                     REPLY]},
        [("user", (0, "x")), HI[1]], 1),
    "padded parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "image": None, "image_url": None},
                                                   {"type": "image", "text": None, "image": A}]}, REPLY]},
        [("user", ("x", 0)), HI[1]], 1),
    "a part by its key": ({"messages": [{"role": "user", "content": [{"path": A, "type": "image"}, {"image_url": B}]},
                                        REPLY]}, [("user", (0, 1)), HI[1]], 2),
    "a placeholder in an answer is text": (
        {"messages": [ASK, {"role": "assistant", "content": "<image>"}]}, [HI[0], ("assistant", ("<image>",))], 0),
    "a placeholder in a part is text": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "<video>"}]}, REPLY]},
        [("user", ("<video>",)), HI[1]], 0),
    "boxes stay as they are": (
        {"image": A, "messages": [{"role": "user", "content": "<image>Where?"},
                                  {"role": "assistant", "content": '[{"bbox_2d": [0, 999, 1000, 1000]}]'}]},
        [("user", (0, "Where?")), ("assistant", ('[{"bbox_2d": [0, 999, 1000, 1000]}]',))], 1),
    "turns after the last answer": ({"messages": [ASK, REPLY, {"role": "user", "content": "Bye."}]}, HI, 0),
    "and their images": ({"messages": [ASK, REPLY, {"role": "user", "content": [{"type": "image", "image": A}]}]}, HI,
                         0),
}  # fmt: skip
REFUSED: dict[str, tuple[Any, str]] = {
    "more placeholders": ({"image": A, "messages": [{"role": "user", "content": "<image><image>"}, REPLY]},
                          r"messages\[0\].content: a placeholder <image> for which the row has no image"),
    "fewer placeholders": ({"images": [A, B], "messages": [{"role": "user", "content": "<image>"}, REPLY]},
                           "messages: 1 placeholders <image> for 2 images"),
    "an image for a video": ({"image": A, "messages": [{"role": "user", "content": "<video>"}, REPLY]},
                             "a placeholder <video> for which the row has no video"),
    "a literal placeholder": ({"messages": [{"role": "user", "content": "What is <image>?"}, REPLY]},
                              "put a literal one in a part of type text"),
    "an odd role": ({"messages": [{"role": "narrator", "content": "x"}, ASK, REPLY]},
                    r"messages\[0\].role: 'narrator' is unknown; use one of system, "),
    "no role": ({"messages": [{"content": "x"}, REPLY]}, r"messages\[0\].role: None is unknown"),
    "a tool": ({"messages": [ASK, {"role": "tool", "content": "x"}, REPLY]}, "'tool' is unknown"),
    "a call": ({"messages": [ASK, {"role": "assistant", "tool_calls": [{}], "content": ""}, REPLY]}, "calls of tools"),
    "tools": ({"tools": [{}], "messages": [ASK, REPLY]}, "tools: calls of tools"),
    "an empty answer": ({"messages": [ASK, {"role": "assistant", "content": " \n"}]}, "the answer is empty"),
    "no answer": ({"messages": [ASK]}, "has no answer: no turn is the assistant's"),
    "an answer of nothing": ({"messages": [ASK, {"role": "assistant"}]}, r"messages\[1\].content: is a NoneType"),
    "a number": ({"messages": [ASK, {"role": "assistant", "content": 4}]}, r"messages\[1\].content: is a int"),
    "an empty question": ({"messages": [{"role": "user", "content": ""}, REPLY]}, "the user says nothing"),
    "an answer first": ({"messages": [REPLY, ASK, REPLY]}, "answers before a user has spoken"),
    "a later system prompt": ({"messages": [ASK, REPLY, {"role": "system", "content": "S"}, ASK, REPLY]},
                              "a system prompt after the first turn"),
    "an image of the assistant": ({"messages": [ASK, {"role": "assistant", "content": [
        {"type": "image", "image": A}, {"type": "text", "text": "x"}]}]}, "the assistant shows media"),
    "sound": ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, REPLY]},
              "a part of type 'input_audio'; use text, image"),
    "a part of no kind": ({"messages": [{"role": "user", "content": [3]}, REPLY]}, "a part is a int"),
    "a part of two kinds": ({"messages": [{"role": "user", "content": [
        {"type": "image", "image": "images/a.png", "text": "What?"}]}, REPLY]}, "a part holds text and image; write a"),
    "a system of parts": ({"system": ["S"], "messages": [ASK, REPLY]}, "system: is a list, not a text"),
    "an answer of weight 0": ({"messages": [ASK, {**REPLY, "weight": 0}, ASK, {**REPLY, "weight": 1}]},
                              r"messages\[1\].weight: 0: every answer of a row is learned alike"),
    "an answer without loss": ({"messages": [ASK, {**REPLY, "loss": False}]}, r"messages\[1\].loss: False"),
    "no turns": ({"messages": []}, "messages: is no list of turns, or empty"),
    "nested turns": ({"messages": "[" * 100_000}, "messages: is no list of turns, or empty"),
    "another form": ({"prompt": "x", "completion": "y"}, "has neither conversations nor messages, but prompt, compl"),
    "no object": ("Hi.", "is a str, not an object"),
    "a missing image": ({"image": "gone.jpg", "messages": [{"role": "user", "content": "<image>"}, REPLY]},
                        r"gone.jpg: No such file or directory; lay it there, or give `media`"),
    "a remote image": ({"messages": [{"role": "user", "content": [{"type": "image", "url": "https://a.b/c.jpg"}]},
                                     REPLY]}, "https://a.b/c.jpg: is remote; download it"),
    "a broken data URL": ({"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAA"}}]}, REPLY]}, "no base64"),
    "no image": ({"image": "rows.jsonl", "messages": [{"role": "user", "content": "<image>"}, REPLY]},
                 "rows.jsonl: unreadable image"),
    "no video": ({"video": "rows.jsonl", "messages": [{"role": "user", "content": "<video>"}, REPLY]},
                 "rows.jsonl: unreadable video"),
}  # fmt: skip


def test_each_form_of_a_row_has_its_turns_and_its_number_of_media(folder: Path) -> None:
    scenes, summary = read(shards(folder, *(row for row, _, _ in USED.values())))
    assert summary.skipped == []
    assert summary.dropped == {
        "turns after the last answer": 2,
        "system of a row whose first turn is the system's": 2,
    }
    for (name, (_, turns, media)), talk in zip(USED.items(), dialogues(scenes), strict=True):
        assert [(turn.role, turn.parts) for turn in talk.turns] == turns, name
        assert len(talk.media) == media, name


def test_each_fault_of_a_row_is_told_with_file_and_line_and_counted(folder: Path) -> None:
    scenes, summary = read(shards(folder, *(row for row, _ in REFUSED.values()), {"messages": [ASK, REPLY]}))
    assert len(scenes) == summary.records == 1
    assert len(summary.skipped) == len(REFUSED)
    for line, ((name, (_, reason)), skipped) in enumerate(zip(REFUSED.items(), summary.skipped, strict=True), start=1):
        assert re.search(reason, skipped.reason), (name, skipped.reason)
        assert f"rows.jsonl:{line}" in f"{skipped.source} {skipped.reason}", name


def test_rows_with_one_id_are_all_kept_and_in_one_split(folder: Path) -> None:
    rows = [{"id": 7, "messages": [ASK, {"role": "assistant", "content": str(n)}]} for n in range(3)]
    scenes, _ = read(shards(folder, *rows))
    assert [scene.id for scene in scenes] == [f"rows.jsonl:{line}/7" for line in (1, 2, 3)]
    assert len({split_of(row) for row in rows}) == 1


def test_json_and_parquet_say_the_same_as_lines(folder: Path) -> None:
    rows = [{"id": str(n), "image": A, "messages": [{"role": "user", "content": f"<image>{n}"}, REPLY]} for n in (1, 2)]
    expected = list(dialogues(read(shards(folder, *rows))[0]))
    (folder / "rows.jsonl").unlink()
    (folder / "rows.json").write_text(json.dumps(rows))
    listed, _ = read(ConversationShards(str(folder), str(folder.parent / "cache"), workers=1))
    assert [scene.id for scene in listed] == ["rows.json[0]/1", "rows.json[1]/2"]
    (folder / "rows.json").unlink()
    table = [{**row, "image": {"bytes": (folder / A).read_bytes(), "path": "x.png"}} for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(table), folder / "rows.parquet", row_group_size=1)
    stored, _ = read(ConversationShards(str(folder), str(folder.parent / "cache"), workers=1))
    for found in (listed, stored):
        assert all(same(one, other) for one, other in zip(dialogues(found), expected, strict=True))


def test_datasets_of_other_libraries_say_the_same_as_lines(folder: Path) -> None:
    rows = [{"id": n, "image": A, "messages": [{"role": "user", "content": f"<image>{n}"}, REPLY]} for n in ("u", "v")]
    expected = list(dialogues(read(shards(folder, *rows))[0]))
    image = (folder / A).read_bytes()
    others = folder.parent / "others"
    for name in ("hugging_face", "web_dataset", "mds"):
        (others / name).mkdir(parents=True)
    table = pyarrow.Table.from_pylist([{**row, "image": {"bytes": image, "path": None}} for row in rows])
    with pyarrow.ipc.new_stream(others / "hugging_face" / "data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table)
    (others / "hugging_face" / "state.json").write_text("{}")
    with tarfile.open(others / "web_dataset" / "00000.tar", "w") as tar:
        for row in rows:
            turns = json.dumps({"messages": row["messages"]}).encode()
            for ending, content in (("json", turns), ("png", image)):
                member = tarfile.TarInfo(f"{row['id']}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    columns = {"name": "str", "dialog": "json", "picture": "bytes"}
    with MDSWriter(out=str(others / "mds"), columns=columns, compression="zstd", hashes=["sha1"]) as writer:
        for row in rows:
            writer.write({"name": row["id"], "dialog": row["messages"], "picture": image})
    renamed = {"id": "name", "messages": "dialog", "image": "picture"}
    for name, names in (("hugging_face", None), ("web_dataset", None), ("mds", renamed)):
        place, cache = str(others / name), str(folder.parent / "cache")
        scenes, summary = read(ConversationShards(place, cache, workers=1, columns=names))
        assert summary.skipped == [], name
        assert [scene.provenance["log"] for scene in scenes] == ["u", "v"]
        assert all(same(one, other) for one, other in zip(dialogues(scenes), expected, strict=True)), name


def test_lines_may_be_named_json(folder: Path) -> None:
    (folder / "rows.json").write_text(f"{json.dumps(LLAVA)}\n{json.dumps({'messages': [ASK, REPLY]})}\n")
    scenes, _ = read(ConversationShards(str(folder), str(folder.parent / "cache"), workers=1))
    assert [scene.id for scene in scenes] == ["rows.json:1/one", "rows.json:2"]


def test_a_tar_without_turns_and_a_broken_one_are_named(folder: Path) -> None:
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.add(folder / A, "x/pair.png")
    (folder / "b.tar").write_bytes(b"no tar" * 200)
    (folder / "c.arrow").write_bytes(b"no arrow")
    (folder / "d.jsonl").write_text(json.dumps({"messages": [ASK, REPLY]}))
    scenes, summary = read(ConversationShards(str(folder), str(folder.parent / "cache"), workers=1))
    reasons = sorted(skipped.reason for skipped in summary.skipped)
    assert len(scenes) == 1
    assert [re.sub(r":? .*", "", reason) for reason in reasons] == [
        f"{folder}/a.tar[x/pair]", f"{folder}/b.tar", f"{folder}/c.arrow",
    ]  # fmt: skip
    assert "has no .json, but .png; write the turns next to the media" in reasons[0]


def test_parts_of_a_table_are_padded_and_contents_may_be_mixed(folder: Path) -> None:
    """Arrow gives every part all keys; a column of texts and lists is written as JSON."""
    parts = [{"type": "text", "text": "x", "image": None}, {"type": "image", "text": None, "image": A}]
    table = pyarrow.Table.from_pylist([{"messages": [{"role": "user", "content": parts}, {"role": "assistant",
        "content": [{"type": "text", "text": "y", "image": None}]}]}])  # fmt: skip
    parquet.write_table(table, folder / "padded.parquet")
    mixed = json.dumps([{"role": "user", "content": parts}, {"role": "assistant", "content": "y"}])
    parquet.write_table(pyarrow.table({"messages": [mixed]}), folder / "text.parquet")
    contents = pyarrow.array([json.dumps(parts), json.dumps("y")], pyarrow.string())
    turns = pyarrow.StructArray.from_arrays(
        [pyarrow.array(["user", "assistant"]), pyarrow.ExtensionArray.from_storage(pyarrow.json_(), contents)],
        names=["role", "content"],
    )
    mixed_column = pyarrow.table({"messages": pyarrow.ListArray.from_arrays([0, 2], turns)})
    parquet.write_table(mixed_column, folder / "mixed.parquet")
    scenes, summary = read(ConversationShards(str(folder), str(folder.parent / "cache"), workers=1))
    assert summary.skipped == []
    for talk in dialogues(scenes):
        assert [(turn.role, turn.parts) for turn in talk.turns] == [("user", ("x", 0)), ("assistant", ("y",))]
    assert len(scenes) == 3


def test_rows_that_are_packed_are_conversations_of_their_own(folder: Path) -> None:
    row = {"messages": [ASK, REPLY]}
    scenes, summary = read(shards(folder, [row, {"messages": []}, row]))
    assert [scene.id for scene in scenes] == ["rows.jsonl:1.0", "rows.jsonl:1.2"]
    assert len(summary.skipped) == 1


def test_a_broken_line_and_a_broken_file_leave_the_rest(folder: Path) -> None:
    (folder / "good.jsonl").write_text(f"{json.dumps({'messages': [ASK, REPLY]})}\n\n{{broken\n")
    (folder / "bad.json").write_text("[{")
    (folder / "object.json").write_text('{\n"messages": []}')
    (folder / "bad.parquet").write_bytes(b"PAR1")
    scenes, summary = read(ConversationShards(str(folder), str(folder.parent / "cache"), workers=1))
    assert [scene.id for scene in scenes] == ["good.jsonl:1"]
    reasons = sorted(skipped.reason for skipped in summary.skipped)
    assert len(reasons) == 4
    assert reasons[0].startswith(f"{folder}/bad.json: ")
    assert reasons[1].startswith(f"{folder}/bad.parquet: ")
    assert reasons[2].startswith(f"{folder}/good.jsonl:3: ")
    assert "is a dict, not a list of conversations" in reasons[3]


def test_a_folder_without_conversations_is_named(folder: Path) -> None:
    with pytest.raises(SceneError, match=r"holds no file of \.json"):
        ConversationShards(str(folder), "cache").items  # noqa: B018
    (folder / "rows.jsonl").write_text("\n")
    with pytest.raises(SceneError, match=r"its files hold no conversation"):
        ConversationShards(str(folder), "cache").items  # noqa: B018


def test_videos_are_sampled_and_keep_their_times(folder: Path) -> None:
    images = [Image.new("RGB", (64, 48), (10 * step, 0, 0)) for step in range(20)]
    (folder / "clip.mp4").write_bytes(encode_clip(images, 10.0))
    ask = [{"role": "user", "content": "<video>What moves?"}, REPLY]
    rows = [{"video": "clip.mp4", "messages": ask}, {"videos": [[A, A, A]], "messages": ask}]
    (clip, frames), _ = read(shards(folder, *rows))
    (video, listed) = [talk.media[0] for talk in dialogues([clip, frames])]
    assert video.times.tolist() == pytest.approx([0.0, 0.5, 1.0, 1.5])
    shown = decode_clip(video.clip or b"")
    assert [image.getpixel((5, 5))[0] for image in shown] == pytest.approx([0, 50, 100, 150], abs=8)  # type: ignore[index]
    assert (listed.times.tolist(), len(listed.frames), listed.is_video) == ([0.0, 0.5, 1.0], 3, True)
    (few, _), _ = read(shards(folder, *rows, video_frames=2))
    ((short,),) = [talk.media for talk in dialogues([few])]
    assert len(short.times) == 2


def test_a_change_of_files_or_arguments_makes_other_shards(folder: Path) -> None:
    before = shards(folder, LLAVA)
    assert shards(folder, LLAVA, split="train").folder != before.folder
    assert shards(folder, LLAVA, LLAVA).folder != before.folder


def test_a_record_decodes_to_the_same_bits(folder: Path) -> None:
    talk = dialogue(("system", ""), ("user", ["a", picture(1), film(2), "b"]), ("assistant", "c"))
    scene = dataclasses.replace(scene_of(talk), provenance={"dataset": "made"})
    assert same(decode(encode(scene)), scene)
    damaged = encode(scene)
    damaged["facts"]["dialogue"]["media"][0]["bytes"] = [3]
    with pytest.raises(SceneError, match=r"record talk: .*dialogue.media0: .* bytes where facts count 3"):
        decode(damaged)
