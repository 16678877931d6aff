"""Streams of text that the data plane's tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from framework.model.backbone import RandomBackbone
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
