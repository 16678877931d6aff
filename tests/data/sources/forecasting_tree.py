"""Small scenarios in the published layout of Argoverse 2 motion forecasting, with their maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from tests.data.sources.argoverse_tree import vector_map

STEPS = 110
SPEED, TURN = 8.0, 0.05
OTHERS = (("vehicle", 15.0, 3.5, 6.0), ("pedestrian", 9.0, -6.0, 1.0), ("background", 20.0, 8.0, 0.0))
"""Type, place relative to the ego's start (m) and speed along x (m/s) of the other tracks."""


def write_scenario(part: Path, name: str) -> Path:
    """Writes a scenario of 11 s in a folder of its own in `part`, which is a split. Returns the folder."""
    folder = part / name
    folder.mkdir(parents=True)
    seconds = np.arange(STEPS) / 10
    yaw = TURN * seconds
    ego = [SPEED / TURN * np.sin(yaw), SPEED / TURN * (1 - np.cos(yaw)), yaw, SPEED * np.cos(yaw), SPEED * np.sin(yaw)]
    still = np.zeros(STEPS)
    tracks = {"AV": ("vehicle", ego)}
    for number, (kind, x, y, speed) in enumerate(OTHERS):
        tracks[f"{number}"] = (kind, [x + speed * seconds, y + still, still, speed + still, still])
    rows: dict[str, list[Any]] = {}
    for track, (kind, (x, y, heading, vx, vy)) in tracks.items():
        columns = {"position_x": x + 1500.0, "position_y": y + 220.0, "heading": heading, "velocity_x": vx,
                   "velocity_y": vy, "timestep": np.arange(STEPS)}  # fmt: skip
        for column, values in columns.items():
            rows.setdefault(column, []).extend(values.tolist())
        rows.setdefault("track_id", []).extend([track] * STEPS)
        rows.setdefault("object_type", []).extend([kind] * STEPS)
    rows["start_timestamp"] = [3.15986559459579e17] * len(rows["track_id"])
    rows["scenario_id"] = [name] * len(rows["track_id"])
    parquet.write_table(pa.table(rows), folder / f"scenario_{name}.parquet")
    (folder / f"log_map_archive_{name}.json").write_text(json.dumps(vector_map()))
    return folder
