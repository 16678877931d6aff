"""What a conversion costs on one core: records a second, against a plain loop and against bare MDSWriter.

    OMP_NUM_THREADS=1 python -m tools.bench.conversion [--scenes 200 --repeats 7 --out ...]

The records are scenes of the built-in world with six cameras and a LiDAR. `ours` reads each from shards on the disk,
checks it, encodes it, writes it, counts it and keeps outlines for the index, in parts, as `tools.convert` does with one
worker. `loop` reads, encodes and writes. `writer` writes what is encoded already. All write the same MDS columns with
the same compression and hashes; they take turns in one process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from streaming import MDSWriter

from framework.data.shards.parts import HASHES, SHARD_BYTES, Work
from framework.data.shards.reader import ShardReader, open_reader
from framework.data.shards.record import COLUMNS, encode
from framework.data.shards.writer import write_shards
from framework.scene.types import Scene
from framework.scene.world.generate import generate_scene
from framework.scene.world.rig import FULL_RIG, LidarMount, Rig
from framework.scene.world.scenarios import TRAIN_KINDS
from tools.bench.machine import write_result

RIG = Rig(tuple(replace(mount, width=640, height=360) for mount in FULL_RIG.cameras), LidarMount(azimuths=360))
"""Six cameras and a LiDAR whose record is about 150 KB."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and writes the figures."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.conversion", description="Records a second.")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("tools/bench/results/conversion.json"))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_shards(Work(list(range(options.scenes)), _generated), place / "source", workers=2, quiet=True)
        figures = measure(place, options.scenes, options.repeats)
    write_result(options.out, "conversion", vars(options), figures)
    return 0


def measure(place: Path, scenes: int, repeats: int) -> dict[str, Any]:
    """Returns records a second of a core (CPU time of the process) and of the clock, by side: the median of `repeats`
    rounds, the least and the most. `place` holds the records in `source`.
    """
    reader = open_reader(str(place / "source"), place / "source")
    items = [reader.cache.index.locate(number) for number in range(scenes)]
    encoded = [encode(reader.scene(*item)) for item in items]
    sides: dict[str, Callable[[Path], None]] = {
        "ours": lambda out: _ours(reader, items, out),
        "loop": lambda out: _write((encode(reader.scene(*item)) for item in items), out),
        "writer": lambda out: _write(iter(encoded), out),
    }
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for round_ in range(-1, repeats):  # the first warms up
        for name, side in sides.items():
            with tempfile.TemporaryDirectory(dir=place) as out:
                start, busy = time.perf_counter(), time.process_time()
                side(Path(out) / name)
                took = time.process_time() - busy, time.perf_counter() - start
            if round_ >= 0:
                rates[name].append((scenes / took[0], scenes / took[1]))
    ratios = {
        name: statistics.median(ours[0] / other[0] for ours, other in zip(rates["ours"], rates[name], strict=True))
        for name in ("loop", "writer")
    }
    sizes = [len(record["arrays"]) + len(record["frames"]) for record in encoded]
    return {
        "record_bytes": round(statistics.mean(sizes)),
        "records_per_core_s": {name: _figures([core for core, _ in of]) for name, of in rates.items()},
        "records_per_s": {name: _figures([clock for _, clock in of]) for name, of in rates.items()},
        "ours_over": ratios,
    }


def _figures(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _generated(seed: int) -> Iterator[Scene]:
    yield generate_scene(seed, TRAIN_KINDS[seed % len(TRAIN_KINDS)], rig=RIG)


def _ours(reader: ShardReader, items: Sequence[tuple[int, int]], out: Path) -> None:
    write_shards(Work(items, partial(_read, reader)), out, quiet=True)


def _read(reader: ShardReader, item: tuple[int, int]) -> Iterator[Scene]:
    yield reader.scene(*item)


def _write(records: Iterator[dict[str, Any]], out: Path) -> None:
    with MDSWriter(
        out=str(out), columns=COLUMNS, compression="zstd:3", hashes=HASHES, size_limit=SHARD_BYTES
    ) as writer:
        for record in records:
            writer.write(record)


if __name__ == "__main__":
    sys.exit(main())
