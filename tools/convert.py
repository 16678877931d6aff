"""Write recorded datasets as shards.

python -m tools.convert --source all --input recordings --out shards/recordings --workers 4
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from framework.data.sources.recordings import DATASETS, find_recordings, left_out, write_recordings
from framework.scene.types import SceneError


def main(arguments: list[str] | None = None) -> int:
    """Writes the shards and prints a summary. Returns 1 when there is no recording, or none could be written."""
    parser = argparse.ArgumentParser(prog="python -m tools.convert", description="Write recorded datasets as shards.")
    parser.add_argument("--source", choices=[*DATASETS, "all"], required=True, help="the dataset")
    parser.add_argument("--input", type=Path, required=True, help="folder that is searched for recordings")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards; finished parts in it are kept")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    options = parser.parse_args(arguments)
    try:
        datasets = None if options.source == "all" else [options.source]
        items = find_recordings(options.input, datasets)
        dropped = left_out(options.input, datasets)
        print(write_recordings(options.out, items, options.workers, dropped=dropped))
    except SceneError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
