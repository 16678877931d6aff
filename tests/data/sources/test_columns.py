"""Tables of one's own become scenes by a mapping of columns, whatever file they are in."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import ipc, parquet
from streaming import MDSWriter

from framework.data.sources.columns import Columns, value_at
from framework.data.sources.recordings import RecordingShards, find_recordings
from framework.data.stream.mixture import read_scenes
from framework.scene.types import Scene, SceneError

CALIBRATION = {
    "cameras.front.intrinsic": [[50.0, 0.0, 32.0], [0.0, 50.0, 24.0], [0.0, 0.0, 1.0]],
    "cameras.front.extrinsic": np.eye(4).tolist(),
}
COLUMNS = {
    "id": "name", "log": "drive", "command": "order", "caption": "said", "questions": "qa",
    "history": "ego.past", "future": "ego.next", "boxes": "boxes", "boxes.labels": "what",
    "cameras.front.image": "picture",
}  # fmt: skip
KINDS = {"name": "str", "drive": "str", "order": "str", "said": "str", "qa": "json", "ego": "json", "boxes": "json",
         "what": "json", "picture": "bytes"}  # fmt: skip


def _picture(number: int) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (64, 48), (number * 20, 90, 60)).save(written, "JPEG")
    return written.getvalue()


def _rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(3)
    rows = []
    for number in range(6):
        past, ahead = np.abs(rng.normal(size=(5, 4))), np.abs(rng.normal(size=(20, 4)))
        past[-1, :3] = 0.0
        rows.append({
            "name": f"r{number}", "drive": f"d{number // 2}", "order": "left", "said": f"Scene {number}.",
            "qa": [["How many?", str(number), "count"]], "ego": {"past": past.tolist(), "next": ahead.tolist()},
            "boxes": np.abs(rng.normal(size=(2, 9))).tolist(), "what": ["car", "bus"], "picture": _picture(number),
        })  # fmt: skip
    return rows


def _write(folder: Path, form: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = _rows()
    if form == "mds":
        with MDSWriter(out=str(folder), columns=KINDS) as writer:
            for row in rows:
                writer.write(row)
    elif form == "tar":
        with tarfile.open(folder / "some.tar", "w") as file:
            for row in rows:
                facts = json.dumps({name: value for name, value in row.items() if name != "picture"}).encode()
                for ending, data in (("json", facts), ("jpg", row["picture"])):
                    member = tarfile.TarInfo(f"{row['name']}.{ending}")
                    member.size = len(data)
                    file.addfile(member, io.BytesIO(data))
    else:
        table = pyarrow.Table.from_pylist(rows)
        if form == "parquet":
            parquet.write_table(table, folder / "some.parquet")
        else:
            with ipc.new_stream(str(folder / "data.arrow"), table.schema) as writer:
                writer.write_table(table)


def _dataset(form: str) -> Columns:
    picture = "images.0" if form == "tar" else "picture"
    return Columns(COLUMNS | {"cameras.front.image": picture}, CALIBRATION, rate_hz=2.0)


@pytest.mark.parametrize("form", ["mds", "tar", "parquet", "arrow"])
def test_rows_of_every_form_become_the_scenes_that_they_describe(form: str, tmp_path: Path) -> None:
    _write(tmp_path / "rows", form)
    source = RecordingShards(tmp_path / "rows", str(tmp_path / "cache"), {"own": _dataset(form)}, workers=1)
    scenes: dict[str, Scene] = {scene.id: scene for scene in read_scenes(source)}
    assert [len(log.frames) for log in source.found.logs["own"] if log.frames] == [2, 2, 2]
    for row in _rows():
        scene = scenes[row["name"]]
        assert scene.history is not None
        assert scene.future is not None
        assert scene.boxes is not None
        assert scene.history.rate_hz == 2.0
        np.testing.assert_array_equal(scene.history.states, row["ego"]["past"])
        np.testing.assert_array_equal(scene.future.states, row["ego"]["next"])
        np.testing.assert_array_equal(scene.boxes.values, row["boxes"])
        assert scene.boxes.labels == ("car", "bus")
        assert (scene.command, scene.caption, scene.provenance["log"]) == ("left", row["said"], row["drive"])
        assert scene.questions[0].answer == row["qa"][0][1]
        (camera,) = scene.cameras
        assert (camera.name, camera.width, camera.height, camera.frames) == ("front", 64, 48, (row["picture"],))
        np.testing.assert_array_equal(camera.intrinsic, CALIBRATION["cameras.front.intrinsic"])


def test_a_column_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    _write(tmp_path / "rows", "mds")
    with pytest.raises(SceneError, match=r"columns.caption: no column sayd \(did you mean said\?\); there are: boxes"):
        find_recordings(tmp_path / "rows", {"own": Columns({"caption": "sayd"})})
    with pytest.raises(
        SceneError, match=r"columns.history: no column pest \(did you mean past\?\); there are: past, n"
    ):
        find_recordings(tmp_path / "rows", {"own": Columns({"history": "ego.pest"})})
    with pytest.raises(SceneError, match=r"columns: none is named for a field; its rows have boxes, drive, ego"):
        find_recordings(tmp_path / "rows", {"own": Columns({})})


@pytest.mark.parametrize(("columns", "message"), [
    ({"histroy": "a"}, r"columns.histroy: no field of a scene \(did you mean history\?\)"),
    ({"boxes": "a"}, r"columns.boxes: needs boxes.labels; name its column, too"),
    ({"cameras.front.image": "a"}, r"columns.cameras.front: needs cameras.front.intrinsic; name its column"),
])  # fmt: skip
def test_a_field_that_is_not_there_or_incomplete_is_refused(columns: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Columns(columns)


def test_a_row_of_another_shape_is_skipped_and_named(tmp_path: Path) -> None:
    rows = [{"name": "a", "past": [[0, 0, 0, 1.0]]}, {"name": "b", "past": [[0, 0]]}, {"name": "c", "past": "x"}]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = find_recordings(tmp_path, {"own": Columns({"id": "name", "history": "past"})})
    summary = found.write(tmp_path / "shards", quiet=True)
    reasons = [each.reason for each in summary.skipped]
    assert summary.records == 1
    assert "rows.jsonl:2: history: shape (1, 2) where (n, 4) belongs" in reasons[0]
    assert "rows.jsonl:3: history: could not convert string to float" in reasons[1]


def test_a_place_leads_into_a_row_and_names_with_dots_come_first() -> None:
    row = {"a": {"b": [1, {"c": 2}]}, "x.y": [7], "x": {"y": [8]}}
    assert [value_at(row, place) for place in ("a.b.0", "a.b.1.c", "x.y.0", "x.y")] == [1, 2, 7, [7]]
    for place in ("a.b.2", "a.c", "a.b.0.0"):
        with pytest.raises(LookupError):
            value_at(row, place)


def test_a_part_of_a_row_that_is_null_is_a_field_that_it_lacks(tmp_path: Path) -> None:
    past = [[0, 0, 0, 1.0]]
    rows = [{"ego": None, "said": "Here."}, {"ego": {"past": past}, "said": "There."}, None]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    summary = find_recordings(tmp_path, {"own": Columns({"history": "ego.past", "caption": "said"})}).write(
        tmp_path / "shards", quiet=True
    )
    assert (summary.records, summary.parts["history"]) == (2, 1)
    assert [each.reason.partition(": ")[2] for each in summary.skipped] == ["holds nothing; write the row again"]


def test_what_cannot_be_read_costs_itself_and_columns_that_no_field_reads_are_named(tmp_path: Path) -> None:
    rows = ["{broken", *(json.dumps({"said": f"{i}", "drive": "a" if i else None, "speed": 3}) for i in range(3))]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    found = find_recordings(tmp_path, {"own": Columns({"caption": "said", "log": "drive"})})
    logs = {log.name: [place for _, place in log.frames] for log in found.logs["own"] if log.frames}
    assert logs == {"a": [2, 3], f"{tmp_path.name}/rows": [0, 1]}
    summary = found.write(tmp_path / "shards", quiet=True)
    assert (summary.records, len(summary.skipped)) == (3, 1)
    assert summary.dropped["own column that is not read: speed"] == 4
    assert any("file that can't be read" in what and "cut.parquet" in what for what in summary.dropped)


def test_a_device_is_no_image(tmp_path: Path) -> None:
    row = {"picture": "/dev/zero"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    found = find_recordings(tmp_path, {"own": Columns({"cameras.front.image": "picture"}, CALIBRATION)})
    with pytest.raises(SceneError, match="/dev/zero: is no file"):
        list(found.scenes(found.items[0]))


def test_track_ids_of_64_bits_are_kept_and_others_are_told(tmp_path: Path) -> None:
    box = [12.0, 2.0, 0.8, 4.2, 1.8, 1.6, 0.1, 5.0, 0.0]
    ids = ["[1152921504606846977, 1152921504606846978]", "[1.5, 2]", "[NaN, 2]", "[1180591620717411303424, 2]"]
    rows = [f'{{"boxes": [{box}, {box}], "what": ["car", "bus"], "ids": {each}}}\n' for each in ids]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    columns = {"boxes": "boxes", "boxes.labels": "what", "boxes.track_ids": "ids"}
    found = find_recordings(tmp_path, {"own": Columns(columns)})
    (scene,) = found.scenes(found.items[0])
    assert scene.boxes is not None
    assert scene.boxes.track_ids is not None
    assert scene.boxes.track_ids.tolist() == [2**60 + 1, 2**60 + 2], "which a float would take for one"
    for item, said in zip(found.items[1:], ["no whole number", "no whole number", "numbers of 64 bits"], strict=True):
        with pytest.raises(SceneError, match=rf"rows\.jsonl:\d: boxes\.track_ids: .*{said}"):
            list(found.scenes(item))
