"""Indices that are damaged, hostile or of other versions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from framework.data.shards.cache import CorruptShardError
from framework.data.shards.index import ShardIndex
from framework.data.shards.record import SCHEMA_VERSION
from framework.scene.types import Scene, SceneError
from tests.data.scenes import same
from tests.data.shards.cached import opened, read_all, spoil, write

# Indices


def reindex(folder: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Change the entries of a stream's index."""
    path = folder / "index.json"
    facts = json.loads(path.read_text())
    changed = change(facts["shards"])
    path.write_text(json.dumps(facts | ({"shards": changed} if changed is not None else {})))


def test_an_index_that_disagrees_with_its_shards_names_the_first_that_differs(stream: Path, tmp_path: Path) -> None:
    reindex(stream, lambda entries: entries[2]["raw_data"].update(bytes=entries[2]["raw_data"]["bytes"] + 1))
    reader = opened(stream, tmp_path / "cache")
    with pytest.raises(CorruptShardError, match=r"shard\.00002\.mds.*: its hash or size is wrong in storage"):
        read_all(reader)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda entries: entries[0].update(format="xsv"), "is no index of MDS shards"),
        (lambda entries: [{"format": "json", "columns": {}, "samples": 3, "version": 2}], "is no index of MDS shards"),
        (lambda entries: entries[0].pop("raw_data") and None, "is no index of MDS shards"),
        (lambda entries: entries[4].pop("column_names") and None, "is no index of MDS shards"),
        (lambda entries: [entries, entries], "is no index of MDS shards"),
        (lambda entries: [1, 2], "is no index of MDS shards"),
        (lambda entries: entries[0]["raw_data"].update(basename=7), "is no index of MDS shards"),
        (lambda entries: entries[0].update(compression="arithmetic"), "compression arithmetic is not known"),
        (lambda entries: [], "an empty stream, no shard with a sample; convert again or remove it"),
        (lambda entries: [entry | {"samples": 0} for entry in entries], "an empty stream"),
        (lambda entries: entries[0].update(column_encodings=["pkl"] * 6), "pkl.*without pickles"),
        (lambda entries: entries[5].update(column_names=list("abcdef")), "different columns"),
    ],
)
def test_an_index_that_cannot_be_used_is_named_with_its_remedy(
    change: Callable[[list[dict[str, Any]]], Any], complaint: str, plain: Path, tmp_path: Path
) -> None:
    reindex(plain, change)
    with pytest.raises(SceneError, match=rf"{plain}/index\.json: .*{complaint}"):
        opened(plain, tmp_path / "cache")


@pytest.mark.attack("archive", "an index that is none", "refused by name")
@pytest.mark.parametrize("content", ["", "{", '{"other": 1}', '{"shards": [{"samples": 2', "\udcff\udcfe"])
def test_a_file_that_is_no_index_is_named(content: str, plain: Path, tmp_path: Path) -> None:
    (plain / "index.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(SceneError, match=rf"{plain}/index\.json: .*is no index of MDS shards.*write it again"):
        opened(plain, tmp_path / "cache")


def test_a_folder_without_an_index_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SceneError, match=r"empty: no index\.json: not a folder of shards"):
        opened(tmp_path / "empty", tmp_path / "empty")
    with pytest.raises(SceneError, match=r"empty: its index\.json cannot be read"):
        opened(tmp_path / "empty", tmp_path / "cache")


@pytest.mark.attack("archive", "an index whose shards lie outside of its folder", "refused")
@pytest.mark.parametrize("name", ["../outside.mds", "/tmp/outside.mds", "part/../../outside.mds"])
def test_an_index_cannot_have_files_written_outside_of_the_cache(name: str, plain: Path, tmp_path: Path) -> None:
    reindex(plain, lambda entries: entries[0]["raw_data"].update(basename=name))
    with pytest.raises(SceneError, match=r"outside\.mds.* outside of the stream's folder"):
        read_all(opened(plain, tmp_path / "cache"))


@pytest.mark.parametrize("how", ["flipped bit", "truncated", "emptied"])
def test_the_index_s_array_is_made_again_where_it_is_damaged(
    how: str, stream: Path, scenes: list[Scene], tmp_path: Path
) -> None:
    opened(stream, tmp_path / "cache")
    (table,) = (tmp_path / "cache").glob("index.*.npy")
    whole = table.read_bytes()
    spoil(table, how)
    assert same(tuple(read_all(opened(stream, tmp_path / "cache"))), tuple(scenes))
    assert table.read_bytes() == whole


def test_data_that_was_added_is_seen_by_the_next_session(plain: Path, scenes: list[Scene], tmp_path: Path) -> None:
    reader = opened(plain, tmp_path / "cache")
    read_all(reader)
    shutil.rmtree(plain)
    write(plain, [*scenes, *scenes[:6]])
    assert same(tuple(read_all(opened(plain, tmp_path / "cache", "run.2"))), (*scenes, *scenes[:6]))


# Records of other versions


def test_records_of_an_older_schema_are_read(scenes: list[Scene], tmp_path: Path) -> None:
    def older(record: dict[str, Any]) -> dict[str, Any]:
        cameras = [{k: v for k, v in camera.items() if k != "clip"} for camera in record["facts"]["cameras"]]
        return record | {"schema": 1, "facts": record["facts"] | {"cameras": cameras}}

    folder = write(tmp_path / "old", scenes[:4], change=older)
    assert same(tuple(read_all(opened(folder, folder))), tuple(scenes[:4]))


def test_records_of_a_newer_schema_are_refused_by_name(scenes: list[Scene], tmp_path: Path) -> None:
    folder = write(tmp_path / "new", scenes[:4], change=lambda record: record | {"schema": SCHEMA_VERSION + 1})
    with pytest.raises(SceneError, match=rf"record scene-2: schema: version {SCHEMA_VERSION + 1}, .*convert"):
        opened(folder, folder).scene(1, 0)


def test_a_record_is_found_by_its_number_over_all_shards(tmp_path: Path) -> None:
    counts = [3, 0, 1, 4]
    index = ShardIndex(np.array([(count,) for count in counts], dtype=[("samples", "<i8")]), MagicMock(), None)
    places = [(shard, place) for shard, count in enumerate(counts) for place in range(count)]
    assert [index.locate(record) for record in range(sum(counts))] == places
