"""Writes what pykitti 0.3.1 says of the raw drives of `kitti_tree.py`, as JSON on standard output.

uv venv -p 3.11 ENV && uv pip install --python ENV/bin/python pykitti==0.3.1 opencv-python-headless
ENV/bin/python tests/data/sources/kitti_oracle.py > tests/data/sources/kitti_pykitti.json
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import pykitti  # type: ignore[import-not-found]
from kitti_tree import DATE, STRAIGHT, TURNING, write_raw  # type: ignore[import-not-found]

CHOSEN = (20, 35)
"""Frames whose sweeps are projected."""


def drive(root: str, number: int) -> dict[str, Any]:
    data = pykitti.raw(root, DATE, f"{number:04d}")
    calibration = data.calib._asdict()
    pixels = {}
    for camera in range(4) if number == STRAIGHT else ():
        for frame in CHOSEN:
            points = np.c_[data.get_velo(frame)[:, :3].astype(np.float64), np.ones(64)]
            seen = (calibration[f"K_cam{camera}"] @ (calibration[f"T_cam{camera}_velo"] @ points.T)[:3]).T
            pixels[f"{camera}/{frame}"] = np.c_[seen[:, :2] / seen[:, 2:], seen[:, 2]].tolist()
    return {
        "imu_to_velo": calibration["T_velo_imu"].tolist(),
        "poses": [packet.T_w_imu.tolist() for packet in data.oxts],
        "pixels": pixels,
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_raw(Path(folder))
        told = {
            "source": f"pykitti {importlib.metadata.version('pykitti')}, by kitti_oracle.py",
            "drives": {str(number): drive(folder, number) for number in (STRAIGHT, TURNING)},
        }
    rounded = json.loads(json.dumps(told), parse_float=lambda text: round(float(text), 9))
    json.dump(rounded, sys.stdout, separators=(",", ":"))
    print()


if __name__ == "__main__":
    main()
