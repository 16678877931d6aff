"""Write datasets as shards, in parts that can be resumed.

    python -m tools.convert --source recordings --input recordings --out shards/recordings --workers 4
    python -m tools.convert --source nuscenes --split held_out --input nuscenes --out shards/held_out
    python -m tools.convert --source conversations --input tars --out shards/talks --engine slurm --elements 64
    python -m tools.convert --source nuscenes --input nuscenes --out s3://bucket/nuscenes

A source is a preset of `conf/sources/` or of a plugin, or the dotted name of a dataset's class. Words at the end
override the preset: `sources.argoverse.datasets.argoverse.camera_frames=3`. The same command again continues what was
ended at any moment; whatever would change a record is refused by name. The folder has a report when it is finished:
report.json and report.html.

A bucket gets the shards when they are all written, from a folder of this machine that is kept (`--staging`).
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import logging
import re
import sys
import time
from pathlib import Path
from typing import get_args

from framework.data.shards.processes import Engine, in_processes
from framework.data.shards.storage import Bucket, Patience
from framework.data.shards.upload import check_free, upload
from framework.data.shards.writer import write_shards
from framework.data.sources.base import Split
from framework.recipe.allow import TargetNotAllowed
from framework.recipe.problem import RecipeError
from framework.scene.types import SceneError
from tools.convert.conversion import Conversion
from tools.convert.report import write_report
from tools.convert.with_ray import RayEngine
from tools.convert.with_slurm import SlurmEngine

STAGING = Path("outputs/cache/uploads")
PATIENCE = Patience()


def main(arguments: list[str] | None = None) -> int:
    """Writes the shards and prints a summary. Returns 1 when there is no recording, none could be read or written, or
    a part failed, and 2 for a source that there is not.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    conversion = Conversion(
        tuple(options.source), str(options.input.absolute()), options.split, tuple(options.overrides)
    )
    bucket = Bucket(options.out) if "://" in options.out else None
    folder = (Path(options.out) if bucket is None else options.staging / _staged(options.out)).absolute()
    try:
        if bucket is not None:
            check_free(bucket, folder, PATIENCE)
        work = conversion.work()
        resumed, start = any(folder.glob("part-*")), time.monotonic()
        summary = write_shards(
            work,
            folder,
            part_items=options.part_items,
            engine=_engine(options, conversion),
            without_failed=options.without_failed,
        )
        print(summary)
        rate = None if resumed else summary.records / (time.monotonic() - start)
        print(f"report  {write_report(folder, summary, rate)}")
        if bucket is not None:
            print(f"uploaded  {upload(folder, bucket, PATIENCE)} files to {bucket.where}")
    except (LookupError, RecipeError, TargetNotAllowed) as error:
        print(f"--source: {error}", file=sys.stderr)
        return 2
    except (SceneError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 1 if summary.failed else 0


def _staged(url: str) -> str:
    """The folder of a bucket's shards, within that of all uploads."""
    return hashlib.sha256(url.encode()).hexdigest()[:12]


def _engine(options: argparse.Namespace, conversion: Conversion) -> Engine:
    if options.engine == "slurm":
        placement = {name: getattr(options, name) for name in ("partition", "account", "qos", "constraint")}
        return SlurmEngine(conversion, placement, options.elements, options.workers, options.minutes)
    if options.engine == "ray":
        return RayEngine(options.address)
    return functools.partial(in_processes, workers=options.workers)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.convert", description="Write datasets as shards.")
    parser.add_argument("--source", nargs="+", required=True, help="presets of sources, or classes of datasets")
    parser.add_argument("--split", choices=get_args(Split), default="all", help="logs to write (default: all)")
    parser.add_argument("--input", type=Path, required=True, help="folder that is searched for recordings")
    parser.add_argument(
        "--out", type=_place, required=True, help="folder of the shards, or s3://bucket/prefix; finished parts are kept"
    )
    parser.add_argument(
        "--staging", type=Path, default=STAGING, help=f"folder of shards until a bucket has them (default: {STAGING})"
    )
    parser.add_argument(
        "--workers", type=_positive, default=1, help="processes, of each element with slurm (default: 1)"
    )
    parser.add_argument("--part-items", type=_positive, help="frames or rows of a part, at least (default: by number)")
    parser.add_argument("--without-failed", action="store_true", help="make a stream although parts failed")
    parser.add_argument("--engine", choices=("local", "slurm", "ray"), default="local", help="where parts are written")
    slurm = parser.add_argument_group("slurm: an array job whose elements write parts")
    slurm.add_argument("--elements", type=_positive, default=16, help="elements of the array (default: 16)")
    slurm.add_argument("--partition", help="partition (default: the variable SBATCH_PARTITION)")
    for name in ("account", "qos", "constraint"):
        slurm.add_argument(f"--{name}", help=f"{name} of the jobs")
    slurm.add_argument("--minutes", type=_positive, default=240, help="time limit of an element (default: 240)")
    ray = parser.add_argument_group("ray: tasks on a cluster that runs")
    ray.add_argument("--address", default="auto", help="address of the cluster (default: the one of this machine)")
    parser.add_argument("overrides", nargs="*", help="overrides of the sources: sources.NAME.ARGUMENT=VALUE")
    return parser


def _place(text: str) -> str:
    if "://" in text and not re.fullmatch(r"s3://[^/]+/.*[^/]/?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a folder nor s3://bucket/prefix")
    return text.rstrip("/") if "://" in text else text


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
