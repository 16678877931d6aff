"""Small trees of every format, with logs that train and logs that are held out."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from framework.data.sources.lerobot.write import write_lerobot
from tests.data.sources import (
    argoverse_tree,
    forecasting_tree,
    kitti_tree,
    lerobot_tree,
    nuscenes_tree,
    physical_ai_tree,
)
from tests.dialogues import written_conversations

CAMERA = {
    "cameras.front.intrinsic": "[[50.0,0.0,32.0],[0.0,50.0,24.0],[0.0,0.0,1.0]]",
    "cameras.front.extrinsic": "[[0.0,0.0,1.0,1.5],[-1.0,0.0,0.0,0.0],[0.0,-1.0,0.0,1.4],[0.0,0.0,0.0,1.0]]",
}


@dataclass(frozen=True)
class Format:
    """A format as a user of a recipe meets it."""

    write: Callable[[Path], object]
    """Writes the tree into a new folder."""
    tasks: tuple[str, ...] = ("drive", "detect", "answer")
    """The tasks that its scenes can serve."""
    path: str = "recordings"
    """The name of its folder among a recipe's `paths`."""
    suite: str = "recordings"
    """The name of the eval on its held-out part."""
    columns: tuple[str, ...] = ()
    """Overrides that name its columns."""


def write_argoverse(root: Path) -> None:
    """Two sensor logs, in `train` and in `val`."""
    for number, part in enumerate(("train", "val"), start=1):
        argoverse_tree.write_log(root / part, f"7c696054-aaaa-4000-8000-{number:012}")


def write_kitti_drives(root: Path) -> None:
    """Two raw drives, of which the hash of their names holds one out."""
    kitti_tree.write_raw(root, (kitti_tree.STRAIGHT, 17))


def write_kitti_sequences(root: Path) -> None:
    """Two tracking sequences, likewise."""
    kitti_tree.write_tracking(root, (0, 12))


def write_py123d(root: Path) -> None:
    """Two logs, in `nuplan_train` and in `nuplan_val`, as py123d's own writers left them."""
    zipfile.ZipFile(Path(__file__).parent / "vectors" / "py123d_logs.zip").extractall(root)


def write_forecasting(root: Path) -> None:
    """Two scenarios, in `train` and in `val`."""
    for number, part in enumerate(("train", "val")):
        forecasting_tree.write_scenario(root / part, f"0a1e6f0a-1817-4a98-b02e-{number:012}")


def write_rows(root: Path) -> None:
    """A table of one's own: eight drives of six rows, of which the hash of their names holds one out."""
    rows = []
    for drive in range(8):
        for number in range(6):
            history, future = lerobot_tree.drive(number)
            written = io.BytesIO()
            Image.new("RGB", (64, 48), (number * 20, 90, 60)).save(written, "JPEG")
            row = {"name": f"{drive}-{number}", "drive": f"drive {drive}", "picture": written.getvalue()}
            row |= {"past": history.states.tolist(), "next": future.states.tolist()}
            box = [12.0 + number, 2.0, 0.8, 4.2, 1.8, 1.6, 0.1, 5.0, 0.0]
            rows.append(row | {"boxes": [box], "what": ["car"], "qa": [["How many?", "1", "count"]]})
    root.mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(rows), root / "rows.parquet")


COLUMNS = {
    "id": "name", "log": "drive", "history": "past", "future": "next", "boxes": "boxes", "boxes.labels": "what",
    "questions": "qa", "cameras.front.image": "picture",
}  # fmt: skip


def _mapping(entries: dict[str, str]) -> str:
    return "{" + ",".join(f"{name}: {value}" for name, value in entries.items()) + "}"


FORMATS = {
    "argoverse": Format(write_argoverse),
    "kitti": Format(kitti_tree.write_object, ("detect", "answer")),
    "kitti_raw": Format(write_kitti_drives),
    "kitti_tracking": Format(write_kitti_sequences),
    "nuscenes": Format(nuscenes_tree.write_tree),
    "physical_ai": Format(physical_ai_tree.write_download),
    "py123d": Format(write_py123d),
    "forecasting": Format(write_forecasting),
    "lerobot": Format(
        lambda root: write_lerobot(lerobot_tree.scenes(logs=6), root / "lerobot", lerobot_tree.RATE), ("drive",)
    ),
    "conversations": Format(written_conversations, ("converse",), "conversations", "conversations"),
    "shards": Format(
        write_rows,
        path="shards",
        columns=(
            f"sources.shards.datasets.shards.columns={_mapping(COLUMNS)}",
            f"+sources.shards.datasets.shards.constants={_mapping(CAMERA)}",
        ),
    ),
}
