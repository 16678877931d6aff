"""Write shards as a LeRobotDataset v3.

python -m tools.lerobot --shards shards/real --rate 2 --out lerobot/real
python -m tools.lerobot --shards shards/real --rate 2 --out lerobot/plans --predictions outputs/runs/predict/predictions

A scene without a past or a future, or with other cameras than the first, makes no row; the summary counts them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from framework.data.shards.reader import open_reader
from framework.data.sources.lerobot.write import write_lerobot
from framework.evaluation.predictions import STATE, read_parts
from framework.scene.types import Scene, SceneError, Trajectory


def main(arguments: list[str] | None = None) -> int:
    """Writes the dataset and prints a summary. Returns 1 when nothing can be read or written."""
    parser = argparse.ArgumentParser(prog="python -m tools.lerobot", description="Write shards for LeRobot.")
    parser.add_argument("--shards", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--rate", type=_rate, required=True, help="scenes per second of a log; they make an episode")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--predictions", type=Path, help="folder of predictions, whose plans replace the futures")
    options = parser.parse_args(arguments)
    try:
        plans = None if options.predictions is None else predicted_plans(options.predictions)
        scenes = (scene for scene in read_scenes(options.shards) if plans is None or scene.id in plans)
        print(write_lerobot(scenes, options.out, options.rate, plans))
    except (SceneError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0.0 < rate < 1e4:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of scenes a second")
    return rate


def read_scenes(folder: Path) -> Iterator[Scene]:
    """Yields the scenes of shards in their order."""
    reader = open_reader(str(folder), folder)
    for shard, count in enumerate(reader.cache.index.samples.tolist()):
        for place in range(count):
            yield reader.scene(shard, place)


def predicted_plans(folder: Path) -> dict[str, Trajectory]:
    """Returns the plans of predictions by their scenes' ids. Raises `SceneError` where there is none."""
    plans = {
        row["scene"]: Trajectory(np.array([[state[name] for name in STATE[1:]] for state in row["plan"]]))
        for row in read_parts(folder)
        if row["plan"] is not None
    }
    if not plans:
        raise SceneError(f"{folder}: holds no prediction with a plan; give the folder of a predict run")
    return plans


if __name__ == "__main__":
    sys.exit(main())
