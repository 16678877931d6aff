"""How the data plane's costs grow with the number of shards and samples: the slopes behind docs/scale.md.

    python -m tools.bench.data_scale [--out tools/bench/results/data_scale.json]

Made-up indexes of growing size are read and put in order, each in a process of its own, whose peak memory the kernel
reports; slopes are least-squares over the sizes.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from streaming.base.compression import compress, decompress
from streaming.base.hashing import get_hash

from framework.data.shards.index import read_index
from framework.data.stream.ledger import Ledger, LedgerHeader, read_attempts, tally
from framework.data.stream.mixture import Address, StreamInfo
from framework.data.stream.order import StreamOrder
from tools.bench.machine import write_result

SAMPLES = 64
"""Samples of a shard: 64 MB of records of a megabyte."""
SHARDS = (10_000, 20_000, 40_000, 80_000)
LANES = 64


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("tools/bench/results/data_scale.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = {
            **index_slopes(Path(folder), options.repeats),
            **order_slopes(options.repeats),
            **ledger_cost(Path(folder), options.repeats),
            **shard_rates(options.repeats),
        }
    write_result(options.out, "data_scale", vars(options), figures)


def index_slopes(folder: Path, repeats: int) -> dict[str, float]:
    """What one more shard costs in the index: bytes on disk, seconds to read, bytes of memory."""
    rows = []
    for shards in SHARDS:
        path = folder / f"index-{shards}.json"
        path.write_text(json.dumps({"version": 2, "shards": [_entry(number) for number in range(shards)]}))
        read = functools.partial(read_index, path, str(path))
        parsed = _apart(read, 1)
        rows.append((shards, path.stat().st_size, *parsed, *_apart(read, repeats)))
    names = ("index_bytes", "index_parse_s", "index_parse_memory_bytes", "index_map_s", "index_map_memory_bytes")
    return {f"{name}_per_shard": _slope([(row[0], row[1 + i]) for row in rows]) for i, name in enumerate(names)}


def order_slopes(repeats: int) -> dict[str, float]:
    """What one more shard costs in the order of a pass, and what a step's samples cost whatever the size."""
    rows = []
    for shards in (count * 25 for count in SHARDS):
        samples = np.full(shards, SAMPLES, dtype=np.int64)

        def first(samples: Any = samples) -> None:
            StreamOrder("stream", samples, 0, LANES).at(0, 0, 1)

        rows.append((shards, *_apart(first, repeats)))
    order = StreamOrder("stream", np.full(10**6, SAMPLES, dtype=np.int64), 0, LANES)
    order.at(0, 0, 8)
    start = time.perf_counter()
    for step in range(5000):
        order.at(0, 8 * step, 8)
    return {
        "order_s_per_shard": _slope([(n, seconds) for n, seconds, _ in rows]),
        "order_memory_bytes_per_shard": _slope([(n, memory) for n, _, memory in rows]),
        "order_us_per_step_of_8_samples": 1e6 * (time.perf_counter() - start) / 5000,
    }


def ledger_cost(folder: Path, repeats: int) -> dict[str, float]:
    """Seconds to append a step of 512 samples of one rank, and to tally a million samples."""
    samples = [Address(0, 0, number) for number in range(10**6)]
    header = LedgerHeader("sft", 1, 0, 1, 512, 1, [StreamInfo("stream", 10**6, "made", 1.0)])
    appends, tallies = [], []
    for repeat in range(repeats):
        place = folder / f"ledger-{repeat}"
        ledger = Ledger(place, header)
        start = time.perf_counter()
        for step in range(10**6 // 512):
            ledger.append(step + 1, samples[512 * step : 512 * (step + 1)])
        appends.append((time.perf_counter() - start) / (10**6 // 512))
        start = time.perf_counter()
        tally(read_attempts(place)["sft"])
        tallies.append(time.perf_counter() - start)
    return {
        "ledger_us_per_step_of_512_samples": 1e6 * statistics.median(appends),
        "ledger_tally_s_per_million_samples": statistics.median(tallies),
    }


def shard_rates(repeats: int) -> dict[str, float]:
    """Bytes a second of one core, over a 64 MB shard of noise: hashing, and unpacking zstd."""
    data = os.urandom(1 << 26)
    packed = compress("zstd:3", data)
    hashing, unpacking = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        get_hash("xxh64", data)
        hashing.append(len(data) / (time.perf_counter() - start))
        start = time.perf_counter()
        decompress("zstd:3", packed)
        unpacking.append(len(data) / (time.perf_counter() - start))
    return {"verify_bytes_per_s": statistics.median(hashing), "unpack_bytes_per_s": statistics.median(unpacking)}


def _entry(number: int) -> dict[str, Any]:
    name = f"part-{number // 1000:05d}/shard.{number % 1000:05d}.mds"
    hashes = {"sha1": f"{number:040x}", "xxh64": f"{number:016x}"}
    return {
        "column_encodings": ["int", "str", "str", "json", "bytes", "bytes"],
        "column_names": ["schema", "id", "kind", "facts", "arrays", "frames"],
        "column_sizes": [8, None, None, None, None, None],
        "compression": "zstd:3",
        "format": "mds",
        "hashes": ["sha1", "xxh64"],
        "raw_data": {"basename": name, "bytes": 1 << 26, "hashes": hashes},
        "samples": SAMPLES,
        "size_limit": 1 << 26,
        "version": 2,
        "zip_data": {"basename": f"{name}.zstd", "bytes": 1 << 25, "hashes": hashes},
    }


def _apart(work: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Seconds and peak of additional memory (bytes) of `work`, medians over processes of their own."""
    results = [_in_process(work) for _ in range(repeats)]
    return statistics.median(s for s, _ in results), statistics.median(m for _, m in results)


def _in_process(work: Callable[[], Any]) -> tuple[float, float]:
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def run() -> None:
        before = _peak()
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        queue.put((seconds, _peak() - before))
        del result

    process = context.Process(target=run)
    process.start()
    process.join()
    result: tuple[float, float] = queue.get()
    return result


def _peak() -> float:
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _slope(points: list[tuple[float, float]]) -> float:
    sizes, values = zip(*points, strict=True)
    return float(np.polyfit(sizes, values, deg=1)[0])


if __name__ == "__main__":
    main()
