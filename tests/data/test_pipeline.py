"""A camera that no stream has is refused before anything is trained."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from framework.data.render.sensors import EgoInput
from framework.data.shards.reader import ShardReader
from framework.data.shards.writer import Work, write_shards
from framework.data.stream.loader import StepLoader
from framework.model.backbone import RandomBackbone
from framework.scene.types import FloatArray, Scene
from framework.scene.world.generate import generate_scene
from tests.data.streams import pipeline, shares, write_texts


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_shards(Work([0, 1, 2], lambda seed: [generate_scene(seed, "straight")]), folder, quiet=True)
    return folder


def opened(folders: dict[str, Path], cameras: list[str], folder: Path) -> StepLoader:
    processor, mixture = RandomBackbone({}).processor(), shares(folders)
    return pipeline(cameras=cameras).loader(mixture, processor, stage="s", samples=8, seed=0, folder=folder)


@pytest.mark.fault("a camera that no scene has")
def test_a_misspelt_camera_is_refused_with_the_nearest(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.cameras: \['frnt'\].*front.*left.*right.*did you mean front"):
        opened({"a": pictures}, ["left", "frnt"], tmp_path)
    assert opened({"a": pictures}, ["left", "front"], tmp_path).global_batch == 8


def test_a_camera_is_named_once() -> None:
    with pytest.raises(ValueError, match=r"data.cameras: \['front', 'left', 'front'\] names one twice"):
        pipeline(cameras=["front", "left", "front"])


class Sonar:
    """A sensor that no scene has."""

    placeholder, channels = "<|lidar|>", 1

    def rows(self, scene: Scene) -> None: ...

    def placeholders(self, rows: FloatArray) -> int:
        return len(rows)


@pytest.mark.fault("a camera that no scene has")
def test_a_sensor_that_no_stream_has_is_warned_about(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    processor, mixture = RandomBackbone({}).processor(["<|lidar|>", "<|ego|>"]), shares({"a": pictures})
    sensors = {"sonar": Sonar(), "ego": EgoInput()}
    with caplog.at_level(logging.WARNING):
        pipeline(sensors=sensors).loader(mixture, processor, stage="s", samples=8, seed=0, folder=tmp_path)
    assert "data.sensors: ['sonar'] are not shown" in caplog.text


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The places of shards that are read, or tried."""
    places: list[int] = []
    one = ShardReader.scene

    def counted(self: ShardReader, shard: int, place: int) -> Scene:
        places.append(place)
        return one(self, shard, place)

    monkeypatch.setattr(ShardReader, "scene", counted)
    return places


def test_no_more_scenes_are_read_than_it_takes_to_find_the_cameras(
    pictures: Path, tmp_path: Path, read: list[int]
) -> None:
    opened({"a": pictures, "b": pictures}, ["left"], tmp_path)
    assert len(read) == 1


def test_a_shard_that_cannot_be_fetched_is_tried_once(pictures: Path, tmp_path: Path, read: list[int]) -> None:
    unpacked = shutil.ignore_patterns("*.mds", "*.verified")
    damaged = Path(shutil.copytree(pictures, tmp_path / "damaged", ignore=unpacked))
    (shard,) = damaged.rglob("*.mds.zstd")
    shard.write_bytes(b"")
    opened({"damaged": damaged, "sound": pictures}, ["left"], tmp_path)
    assert len(read) == 2


def test_streams_without_any_camera_are_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pictures: Path
) -> None:
    write_texts(tmp_path / "text", "text", 4)
    with caplog.at_level(logging.WARNING):
        opened({"text": tmp_path / "text"}, ["front"], tmp_path)
    assert "no scene of the streams has a camera" in caplog.text
    caplog.clear()
    opened({"text": tmp_path / "text", "pictures": pictures}, ["front"], tmp_path)  # one of the streams has it
    assert not caplog.text
