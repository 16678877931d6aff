"""Write scenes of the built-in world as shards.

python -m tools.world_shards --out shards/world --scenes 2000 --seed 0 --split train --workers 4
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from framework.data.sources.world import SPLITS, write_world
from framework.scene.types import SceneError
from framework.scene.world.scenarios import HELD_OUT_KINDS, TRAIN_KINDS


def main(arguments: list[str] | None = None) -> int:
    """Writes the shards and prints a summary. Returns 1 when no scene could be written."""
    parser = argparse.ArgumentParser(prog="python -m tools.world_shards", description="Shards of the built-in world.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards; finished parts in it are kept")
    parser.add_argument("--scenes", type=_positive, required=True, help="number of scenes")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first scene; the others count up from it (default: 0)"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--split", choices=sorted(SPLITS), default="train", help="scenario kinds of a split (default: train)"
    )
    which.add_argument(
        "--kinds", nargs="+", choices=[*TRAIN_KINDS, *HELD_OUT_KINDS], metavar="KIND", help="scenario kinds by name"
    )
    parser.add_argument(
        "--camera-frames",
        type=_positive,
        default=1,
        help="frames of each camera: 1 writes stills (default), 2 to 7 clips",
    )
    parser.add_argument("--workers", type=_positive, default=1, help="processes (default: 1)")
    options = parser.parse_args(arguments)
    try:
        kinds = options.kinds or SPLITS[options.split]
        print(write_world(options.out, options.scenes, options.seed, kinds, options.camera_frames, options.workers))
    except SceneError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


if __name__ == "__main__":
    sys.exit(main())
