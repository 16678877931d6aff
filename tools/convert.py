"""Convert recordings into shards.

python -m tools.convert --source all --input recordings --out shards/recordings --workers 4
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from framework.data.sources.recordings import FAMILIES, find_recordings, write_recordings
from framework.scene.types import SceneError


def main(arguments: list[str] | None = None) -> int:
    """Convert and print the summary. Returns 1 when there is nothing to convert or nothing could be."""
    parser = argparse.ArgumentParser(prog="python -m tools.convert", description="Recordings to shards.")
    parser.add_argument("--source", choices=[*FAMILIES, "all"], required=True, help="the family of recordings")
    parser.add_argument("--input", type=Path, required=True, help="a folder; recordings are found anywhere below it")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards; finished parts in it are kept")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    options = parser.parse_args(arguments)
    try:
        items = find_recordings(options.input, None if options.source == "all" else [options.source])
        print(write_recordings(options.out, items, options.workers))
    except SceneError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
