"""What our guards cost where data is read: samples a second and the time to the first batch, against
mosaicml-streaming without them, LitData and WebDataset.

    OMP_NUM_THREADS=1 python -m tools.bench.data_plane [--scenes 600 --repeats 5 --out ...] [--work folder]

All read the same records of the built-in world (JPEGs, LiDAR, radar), from the local disk and from a local S3 server
in a process of its own; two workers on two cores. `raw` passes hand the six columns to the main process; `decoded`
ones make each a `Scene` and decode its images in the worker. The sides take turns, each pass in a forked process. Ours
runs as in training, with verified shards, prefetch and ledger. LitData and WebDataset run where they are installed.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import functools
import gc
import io
import itertools
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import boto3
import torch
from PIL import Image

from framework.data.shards.record import encode
from framework.model.backbone import RandomBackbone
from framework.scene.world.generate import generate_scene
from framework.scene.world.rig import FULL_RIG, LidarMount, Rig
from tools.bench.machine import write_result
from tools.bench.rivals import RIVALS, WORK, OurLoader, Place, Reading, RenderedSamples, StorageSide, installed

RIG = Rig(tuple(replace(mount, width=640, height=360) for mount in FULL_RIG.cameras), LidarMount(azimuths=360))
"""Six cameras and a LiDAR whose record is about 150 KB."""
QUALITY = 90
BUCKET = "bench"
LIMIT_S, PREPARING_S = 90.0, 3600.0
"""A pass that takes longer has hung; so has writing the records, or uploading them."""
NOTES = (
    "local: the shards lie on the disk and in the page cache; ours verifies every one of them in every pass",
    "s3 cold: an empty cache folder; s3 warm: a new process with the cache of the cold pass",
    "webdataset, uncached: read as the bytes arrive, nothing is kept; webdataset: by way of its cache_dir",
    "litdata 0.2.76 has no option for an endpoint without TLS: allow_http is set in its client's options",
    "core ms: of the reading processes, without the server's",
)
SERVER = """
import threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"""


# The records


def make_record(seed: int) -> dict[str, Any]:
    """A scene of the built-in world with its images as JPEG."""
    scene = generate_scene(seed, rig=RIG)
    cameras = tuple(replace(camera, frames=tuple(map(_jpeg, camera.frames))) for camera in scene.cameras)
    return encode(replace(scene, cameras=cameras))


def _jpeg(frame: bytes) -> bytes:
    encoded = io.BytesIO()
    Image.open(io.BytesIO(frame)).convert("RGB").save(encoded, "JPEG", quality=QUALITY)
    return encoded.getvalue()


# A pass


class Size(NamedTuple):
    """How many samples a pass has, and how often each record is among them."""

    samples: int
    copies: int


@dataclass(frozen=True, slots=True)
class ReadPass:
    """One pass: seconds to the first batch from before anything is constructed, samples a second after it,
    milliseconds of all its processes' cores a sample, how many cores others kept busy before it, and whether every
    record came as often as it is stored.
    """

    first_batch_s: float
    samples_per_s: float
    cpu_ms: float
    others: float
    exact: bool


def measure(side: StorageSide, place: Place, reading: Reading, size: Size, calm_s: float = 0.0) -> ReadPass:
    """Time one pass in this process, after at most `calm_s` seconds of waiting for others to leave the machine idle."""
    others = _others(calm_s)
    names, first, count, spent = Counter[str](), 0, 0, 0.0
    start = now = first_at = time.perf_counter()
    busy = _busy_s()
    for batch in side.batches(place, reading, size.samples):
        now = time.perf_counter()
        if not count:
            first, first_at = len(batch), now
        count += len(batch)
        names.update(item["id"] if isinstance(item, dict) else item.id for item in batch)
        if count == size.samples:  # not later: workers of an endless loader go on
            spent = _busy_s() - busy
    exact = count == size.samples and set(names.values()) == {size.copies}
    return ReadPass(first_at - start, (count - first) / (now - first_at), 1e3 * spent / count, others, exact)


def _busy_s() -> float:
    """Seconds that this process and its children, those at work and those that ended, have kept cores busy."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    ticks = 0
    for child in itertools.chain(*(path.read_text().split() for path in Path("/proc/self/task").glob("*/children"))):
        ticks += sum(int(part) for part in Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:15])
    return sum(part.ru_utime + part.ru_stime for part in used) + ticks / os.sysconf("SC_CLK_TCK")


def _others(calm_s: float) -> float:
    deadline, busy = time.monotonic() + calm_s, 0.0
    while calm_s:
        idle = _idle_s()
        time.sleep(0.5)
        busy = max(0.0, (os.cpu_count() or 1) - (_idle_s() - idle) / 0.5)
        if busy < 0.3 or time.monotonic() > deadline:
            break
    return round(busy, 1)


def _idle_s() -> float:
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")


def _rendered(place: Place, reading: Reading, size: Size, calm_s: float) -> ReadPass:
    return measure(RenderedSamples(RandomBackbone({}).processor([])), place, reading, size, calm_s)


def apart(work: Callable[[], Any], cores: Sequence[int], limit_s: float = LIMIT_S) -> Any:
    """What `work` returns, called in a fork of this process on `cores`; the last line of what went wrong as a `str`."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(work, cores, sender))
    child.start()
    sender.close()
    result: Any = f"no end after {limit_s:g} s"
    if receiver.poll(limit_s):
        with contextlib.suppress(EOFError):
            result = receiver.recv()
        child.join(10)
    if child.is_alive():
        os.killpg(cast(int, child.pid), signal.SIGKILL)
    child.join()
    return result


def _child(work: Callable[[], Any], cores: Sequence[int], sender: Any) -> None:
    os.setsid()
    gc.freeze()  # no side is to pay for collecting what all sides imported, which forks would copy page by page
    atexit._clear()  # what is left to do at the parent's end
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(1)
    try:
        result = work()
    except Exception as error:
        traceback.print_exc()
        causes = re.findall(r"^\w+Error: .*$", f"{type(error).__name__}: {error}", re.MULTILINE)
        result = causes[-1][:400] if causes else repr(error)[:400]
    sender.send(result)
    atexit._run_exitfuncs()  # a forked process leaves without: streaming's shared memory would stay


# Everything


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """What is measured: raw passes read `copies` of `scenes` records, decoded ones, which take longer, half of them."""

    scenes: int
    copies: int
    repeats: int
    batch: int
    workers: int
    file_bytes: int
    calm_s: float

    def size(self, mode: str) -> Size:
        """Of a pass."""
        return Size(self.scenes * self.copies, self.copies) if mode == "raw" else Size(self.scenes // 2, 1)

    def reading(self, mode: str) -> Reading:
        """Of a pass."""
        return Reading(self.batch, self.workers, WORK[mode])


def prepare(folder: Path, plan: BenchPlan, sides: dict[str, StorageSide]) -> None:
    """Write the records of every side and mode that are not there yet."""
    todo = {(side.stored, mode): side for side in sides.values() for mode in WORK}
    todo = {(stored, mode): side for (stored, mode), side in todo.items() if not (folder / mode / stored).is_dir()}
    if todo:
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            records = list(pool.map(make_record, range(plan.scenes), chunksize=8))
    for (stored, mode), side in todo.items():
        (folder / mode).mkdir(parents=True, exist_ok=True)
        written = folder / f"{mode}.{stored}.tmp"
        shutil.rmtree(written, ignore_errors=True)
        size = plan.size(mode)
        side.write((records * size.copies)[: size.samples], written, plan.file_bytes)
        written.rename(folder / mode / stored)


@contextlib.contextmanager
def server(folder: Path, cores: Sequence[int]) -> Iterator[str]:
    """The endpoint of an S3 server on `cores` that holds all files under `folder` in its memory."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        os.sched_setaffinity(process.pid, cores)
        endpoint = f"http://127.0.0.1:{int(cast(Any, process.stdout).readline())}"
        secrets = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ.update(secrets | {"S3_ENDPOINT_URL": endpoint, "AWS_ENDPOINT_URL": endpoint})
        failed = apart(functools.partial(_upload, folder, endpoint), cores, PREPARING_S)
        if failed:
            raise SystemExit(f"the S3 server: {failed}")
        yield endpoint
    finally:
        process.kill()
        process.wait()


def _upload(folder: Path, endpoint: str) -> None:
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket=BUCKET, ACL="public-read")
    for path in itertools.chain(*((folder / mode).rglob("*") for mode in WORK)):
        if path.suffix in (".mds", ".bin", ".tar", ".json"):
            key = str(path.relative_to(folder))
            client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes(), ACL="public-read")


Key = tuple[str, str, str]
"""Mode, place ("local", "s3 cold", "s3 warm") and side."""


def turns(plan: BenchPlan, sides: dict[str, StorageSide]) -> Iterator[tuple[int, str, str]]:
    """Whose turn it is: repeat, mode and side; who begins changes from repeat to repeat."""
    for repeat in range(plan.repeats):
        names = [*list(sides)[repeat % len(sides) :], *list(sides)[: repeat % len(sides)]]
        yield from ((repeat, mode, name) for mode in WORK for name in names)
        yield repeat, "rendered", "ours"


def turn(
    folder: Path, endpoint: str, plan: BenchPlan, mode: str, name: str, side: StorageSide, cores: Sequence[int]
) -> list[Any]:
    """A side's passes over a mode's records: where, and the `ReadPass` as a dictionary, or what went wrong."""
    if mode == "rendered":
        place = Place(str(folder / "decoded" / side.stored), folder / "cache" / mode, [])
        work = functools.partial(_rendered, place, plan.reading("decoded"), plan.size("decoded"), plan.calm_s)
        return [("local", apart(work, cores))]
    passes = []
    for where, place in _places(folder, endpoint, mode, name, side):
        work = functools.partial(measure, side, place, plan.reading(mode), plan.size(mode), plan.calm_s)
        passes.append((where, apart(work, cores)))
    return passes


def run(folder: Path, plan: BenchPlan, sides: dict[str, StorageSide]) -> Iterator[tuple[Key, Any]]:
    """All passes. They are noted in `folder`, so that a run that was cut short goes on where it was."""
    cores, journal = sorted(os.sched_getaffinity(0)), folder / "passes.jsonl"
    done = [json.loads(line) for line in journal.read_text().splitlines()] if journal.is_file() else []
    with server(folder, cores[2:] or cores) as endpoint, journal.open("a") as notes:
        for number, (repeat, mode, name) in enumerate(turns(plan, sides)):
            if number >= len(done):
                results = turn(folder, endpoint, plan, mode, name, sides[name], cores[:2])
                done.append([(where, asdict(item) if isinstance(item, ReadPass) else item) for where, item in results])
                notes.write(json.dumps(done[-1]) + "\n")
                notes.flush()
            print(repeat, mode, name, *done[number], flush=True)
            for where, item in done[number]:
                yield (mode, where, name), ReadPass(**item) if isinstance(item, dict) else item
    journal.unlink()


def _places(folder: Path, endpoint: str, mode: str, name: str, side: StorageSide) -> Iterator[tuple[str, Place]]:
    """Where a side reads a mode's records, in turn; the cache is empty for "s3 cold" and stays for "s3 warm"."""
    stored, cache = folder / mode / side.stored, folder / "cache" / name
    shutil.rmtree(cache.parent, ignore_errors=True)
    cache.mkdir(parents=True)
    files = sorted(path.name for path in stored.iterdir())
    remote = Place(f"s3://{BUCKET}/{mode}/{side.stored}", cache, files, endpoint)
    if name.endswith("uncached"):
        yield "s3 cold", remote
    else:
        yield from [("local", Place(str(stored), cache, files)), ("s3 cold", remote), ("s3 warm", remote)]
    shutil.rmtree(cache.parent)


# What comes of it


def figures_of(passes: dict[Key, list[Any]]) -> dict[str, Any]:
    """Medians, every repeat, and how many times as fast ours is, by mode, place and side."""
    figures: dict[str, Any] = {}
    for (mode, where, name), results in passes.items():
        good = [item for item in results if isinstance(item, ReadPass)]
        entry: dict[str, Any] = {"failed": [item for item in results if not isinstance(item, ReadPass)]}
        for key in ("samples_per_s", "first_batch_s", "cpu_ms", "others"):
            each = [round(getattr(item, key), 4) for item in good]
            entry |= {key: statistics.median(each) if each else None, f"{key}_of_each_repeat": each}
        entry["exact"] = bool(good) and all(item.exact for item in good)
        figures.setdefault(mode, {}).setdefault(where, {})[name] = entry
    for side in (side for places in figures.values() for side in places.values()):
        ours = side["ours"]["samples_per_s"]
        for entry in side.values():
            rate = entry["samples_per_s"]
            entry["ours_to_this"] = round(ours / rate, 3) if ours and rate else None
    return figures


def table(figures: dict[str, Any]) -> str:
    """A line for each mode, place and side."""
    lines = [f"{'pass':<22}{'side':<24}{'samples/s':>10}{'first batch':>13}{'core ms':>9}{'ours/this':>11}"]
    for mode, places in figures.items():
        for where, sides in places.items():
            for name, entry in sides.items():
                keys = ("samples_per_s", "first_batch_s", "cpu_ms", "ours_to_this")
                rate, first, cpu, ratio = (entry[key] for key in keys)
                cells = f"{rate:>10.0f}{first:>11.2f} s{cpu:>9.2f}" if rate else f"  {entry['failed'][:1]}"
                cells += f"{ratio:>11.2f}" if ratio else ""
                lines.append(f"{mode + ', ' + where:<22}{name:<24}{cells}{'' if entry['exact'] else '  not exact'}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=600)
    parser.add_argument("--copies", type=int, default=3, help="raw passes read every record so often: longer to time")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=20, help="must divide half of the scenes")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--file-mb", type=float, default=8.0)
    parser.add_argument("--work", type=Path, help="keep what is read, and the passes of a run that is cut short, here")
    parser.add_argument("--out", type=Path, default=Path("tools/bench/results/data_plane.json"))
    parser.add_argument("--calm-s", type=float, default=0.0, help="wait so long before a pass for an idle machine")
    options = parser.parse_args()
    if options.scenes // 2 < 4 * options.batch:
        parser.error(f"--scenes {options.scenes}: a pass after its first batch would be too short to time")
    settings = {key: value for key, value in vars(options).items() if key not in ("file_mb", "work", "out")}
    plan = BenchPlan(**settings, file_bytes=int(options.file_mb * 2**20))
    versions = {rival.package: installed(rival) for rival in RIVALS.values()}
    sides = {"ours": OurLoader(), **{name: rival for name, rival in RIVALS.items() if versions[rival.package]}}
    passes: dict[Key, list[Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.work or Path(temporary)).resolve()
        failed = apart(functools.partial(prepare, folder, plan, sides), sorted(os.sched_getaffinity(0)), PREPARING_S)
        if failed:
            raise SystemExit(failed)
        stored = sum(path.stat().st_size for path in (folder / "decoded" / "mds").glob("*.mds"))
        for key, result in run(folder, plan, sides):
            passes.setdefault(key, []).append(result)
    figures = {
        "record_bytes": round(stored / plan.size("decoded").samples),
        "samples": {mode: plan.size(mode).samples for mode in WORK},
        "passes": figures_of(passes),
        "rivals": {package: version or "not installed" for package, version in versions.items()},
        "notes": NOTES,
    }
    settings = vars(options) | {"omp_num_threads": os.environ.get("OMP_NUM_THREADS"), "cores": 2}
    write_result(options.out, "data plane", settings, figures)
    print(table(cast(dict[str, Any], figures["passes"])))


if __name__ == "__main__":
    main()
