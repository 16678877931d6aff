"""The version of a dataset's code follows its own module and what that imports, and nothing else."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from framework.data.sources import version
from framework.data.sources.argoverse import Argoverse
from framework.data.sources.kitti.detection import Kitti
from framework.data.sources.version import code_version

MODULES = {
    "__init__": "",
    "reading": "from fleet_logs import tables\nfrom .units import METRES\nclass Logs: ...\n",
    "tables": "import json\n",
    "units": "METRES = 1.0\n",
    "unrelated": "",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "fleet_logs"
    folder.mkdir()
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


@pytest.mark.parametrize(
    ("changed", "counts"), [("reading", True), ("tables", True), ("units", True), ("unrelated", False)]
)
def test_a_plugins_version_follows_the_modules_it_imports(changed: str, counts: bool, package: Path) -> None:
    logs = importlib.import_module("fleet_logs.reading").Logs
    try:
        before = code_version.__wrapped__(logs)
        (package / f"{changed}.py").write_text(MODULES[changed] + "# changed\n")
        assert (code_version.__wrapped__(logs) != before) is counts
    finally:
        for name in [name for name in sys.modules if name.startswith("fleet_logs")]:
            del sys.modules[name]


def test_what_the_built_in_datasets_import_from_the_room_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(version, "_source", lambda path: read.append(path.stem) or path.read_bytes())
    code_version.__wrapped__(Kitti)
    assert {"detection", "labels", "info", "annotate", "base", "image", "points"} <= set(read)
    assert not {"raw", "tracking", "recordings"} & set(read)
    read.clear()
    code_version.__wrapped__(Argoverse)
    assert {"argoverse", "tracks", "annotate", "base"} <= set(read)
    assert "recordings" not in read
