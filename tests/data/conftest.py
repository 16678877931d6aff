"""Streams of text that the data plane's tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from framework.data.stream.mixture import Shards, read_scenes
from framework.model.backbone import RandomBackbone
from framework.scene.types import Scene
from tests.data.shards.cached import SCENES, write
from tests.data.streams import write_texts


@pytest.fixture(scope="session")
def processor() -> Any:
    """The small processor of the repository."""
    return RandomBackbone({}).processor([])


@pytest.fixture(scope="session")
def streams(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two streams, of 26 and 11 scenes."""
    folder = tmp_path_factory.mktemp("streams")
    for name, scenes in (("common", 26), ("rare", 11)):
        write_texts(folder / name, name, scenes)
    return {name: folder / name for name in ("common", "rare")}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Scene]:
    folder = tmp_path_factory.mktemp("scenes") / "stream"
    write_texts(folder, "scene", SCENES)
    return list(read_scenes(Shards(local=folder)))


@pytest.fixture(params=["packed", "plain"])
def stream(request: pytest.FixtureRequest, scenes: list[Scene], tmp_path: Path) -> Path:
    """A folder of shards of two scenes each, compressed or not."""
    return write(tmp_path / "stream", scenes, "zstd" if request.param == "packed" else None)


@pytest.fixture
def plain(scenes: list[Scene], tmp_path: Path) -> Path:
    return write(tmp_path / "stream", scenes)
