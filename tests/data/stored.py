"""The files of a folder of shards, to compare with another's."""

from __future__ import annotations

import json
from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    """The index, the manifest and all files of the parts, by path."""
    unpacked = (".mds", ".verified")  # by reading
    parts = [path for path in folder.glob("part-*/*") if path.suffix not in unpacked]
    files = [folder / "index.json", folder / "manifest.json", *parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(files)}


def records(folder: Path) -> int:
    """The number of records that the index counts."""
    return sum(shard["samples"] for shard in json.loads((folder / "index.json").read_text())["shards"])
