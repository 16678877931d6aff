"""The sides of the data-plane benchmark: ours, and mosaicml-streaming without our guards, LitData and WebDataset.

Ours runs as in training; each rival is used as its own documentation has it, on the same records in files of the same
size. LitData and WebDataset are
no dependencies of this project: they are imported when asked for, and an absent one has no `version`.
"""

from __future__ import annotations

import functools
import importlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from PIL import Image
from streaming import MDSWriter, StreamingDataset
from torch.utils.data import DataLoader

from framework.data.pipeline import DataPipeline
from framework.data.render.chat import ChatRenderer
from framework.data.render.tasks import Caption
from framework.data.shards.parts import HASHES
from framework.data.shards.quarantine import Quarantine, QuarantinedSample
from framework.data.shards.record import COLUMNS, decode
from framework.data.stream.batcher import MicroBatcher
from framework.data.stream.cursor import RankSlice
from framework.data.stream.dataset import LoadedStep, StepDataset
from framework.data.stream.ledger import Ledger, LedgerHeader
from framework.data.stream.loader import StepLoader
from framework.data.stream.mixture import Address, Mixture, OpenMixture, Part, Shards
from framework.scene.types import Scene

SHARD_PREFETCH, PREFETCH = 8, 2
"""Steps that shards are fetched ahead and that each worker prepares: what `conf/data/pipeline.yaml` ships."""

Record = Mapping[str, Any]
"""The six columns of `framework.data.shards.record.COLUMNS`, as `decode` takes them."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a pass reads: `stored` is a folder, or an `s3://` URL behind `endpoint` with the local folder `cache`;
    `files` are the names of what lies there.
    """

    stored: str
    cache: Path
    files: Sequence[str]
    endpoint: str | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """How a pass reads: `batch` samples at a time, prepared by `workers` processes, each a `work` of its record."""

    batch: int
    workers: int
    work: Callable[[Record], Any]


class Seen(NamedTuple):
    """What the main process is told of a sample that was decoded: nothing that would be dear to send."""

    id: str
    points: int
    light: float


def see(scene: Scene) -> Seen:
    """Decode a scene's images."""
    images = [np.asarray(Image.open(io.BytesIO(f)).convert("RGB")) for c in scene.cameras for f in c.frames]
    points = 0 if scene.lidar is None else len(scene.lidar.points)
    return Seen(scene.id, points, float(np.mean([image[::16, ::16].mean() for image in images])))


def raw(record: Record) -> Record:
    """Hand over the columns as they are."""
    return record


def decoded(record: Record) -> Seen:
    """A record to a scene, and its images decoded."""
    return see(decode(dict(record)))


WORK: dict[str, Callable[[Record], Any]] = {"raw": raw, "decoded": decoded}


class StorageSide(Protocol):
    """One way to store and to read."""

    package: str
    modules: tuple[str, ...]
    """What it imports where it is used: imported before anything is timed."""
    stored: str
    """The folder's name of what `write` writes."""

    def write(self, records: Sequence[Record], folder: Path, file_bytes: int) -> None:
        """Store the records in files of at most about `file_bytes`."""
        ...

    def batches(self, place: Place, reading: Reading, samples: int) -> Iterator[list[Any]]:
        """One pass over all `samples` there are, shuffled."""
        ...


def installed(side: StorageSide) -> str | None:
    """The version of a side's package, imported; None when it is absent."""
    try:
        present = version(side.package)
    except PackageNotFoundError:
        return None
    for module in side.modules:
        importlib.import_module(module)
    return present


class Plain:
    """mosaicml-streaming as it comes: `StreamingDataset` under torch's `DataLoader`. No shard is verified."""

    package = "mosaicml-streaming"
    modules: tuple[str, ...] = ("boto3",)
    stored = "mds"

    def write(self, records: Sequence[Record], folder: Path, file_bytes: int) -> None:
        """See `StorageSide`. With hashes, as our own writer has them: who does not verify is not slowed by them."""
        with MDSWriter(out=str(folder), columns=COLUMNS, hashes=HASHES, size_limit=file_bytes) as writer:
            for record in records:
                writer.write(dict(record))

    def batches(self, place: Place, reading: Reading, samples: int) -> Iterator[list[Any]]:
        """See `StorageSide`."""
        remote = place.stored if place.endpoint else None
        local = str(place.cache) if place.endpoint else place.stored
        dataset = StreamingDataset(remote=remote, local=local, shuffle=True, batch_size=reading.batch)
        yield from DataLoader(
            dataset,
            batch_size=reading.batch,
            num_workers=reading.workers,
            collate_fn=functools.partial(_each, reading.work),
        )


class Records(StepDataset):
    """In place of rendering, a step's records, raw or decoded, in the form that `StepLoader` knows."""

    def __init__(self, mixture: OpenMixture, work: Callable[[Record], Any], batch: int) -> None:
        super().__init__(mixture, cast(ChatRenderer, None), MicroBatcher(batch))
        self.work = work

    def __getitem__(self, step: list[Address]) -> LoadedStep:
        items = [self._raw(address) if self.work is raw else self._seen(address) for address in step]
        quarantined = [(a, item) for a, item in zip(step, items, strict=True) if isinstance(item, QuarantinedSample)]
        samples = [item for item in items if not isinstance(item, QuarantinedSample)]
        return LoadedStep([samples], quarantined, 0.0, 0.0, 0, 1)

    def _raw(self, address: Address) -> Record:
        shard, place = self.mixture.orders[address.stream].locate(address.sample)
        return self.mixture.readers[address.stream].record(shard, place)

    def _seen(self, address: Address) -> Seen | QuarantinedSample:
        item = self.mixture.read(address)
        return item if isinstance(item, QuarantinedSample) else see(item[0])


class OurLoader(Plain):
    """The records of `Plain`, read by `StepLoader` with all that guards a run; only rendering is left out."""

    def batches(self, place: Place, reading: Reading, samples: int) -> Iterator[list[Any]]:
        """See `StorageSide`."""
        mixture = Mixture({"world": Part(_shards(place), {"caption": 1.0})})
        session = f"bench.{time.time_ns()}"
        opened = mixture.open({"caption": Caption()}, seed=0, samples=samples, session=session)
        folder = place.cache.parent / f"{place.cache.name}.run"

        def ledger(changes: list[str]) -> Ledger:
            return Ledger(folder, LedgerHeader(session, 1, 0, 1, reading.batch, 1, opened.stream_infos(), changes))

        records, quarantine = Records(opened, reading.work, reading.batch), Quarantine(file=folder / "refused.jsonl")
        rank_slice = RankSlice(reading.batch)
        loader = StepLoader(records, rank_slice, quarantine, ledger, reading.workers, PREFETCH, SHARD_PREFETCH)
        yield from _trained(loader, samples // reading.batch)


class RenderedSamples(Plain):
    """As `OurLoader`, with the conversation, the tokens and the processor's pixels: what a model is really given."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def batches(self, place: Place, reading: Reading, samples: int) -> Iterator[list[Any]]:
        """See `StorageSide`."""
        pipeline = DataPipeline(
            tasks={"caption": Caption()},
            sensors={},
            global_batch=reading.batch,
            micro_batch=reading.batch,
            max_length=1536,
            image_width=96,
            workers=reading.workers,
            prefetch_factor=PREFETCH,
            shard_prefetch_steps=SHARD_PREFETCH,
        )
        mixture = Mixture({"world": Part(_shards(place), {"caption": 1.0})})
        loader = pipeline.loader(
            mixture,
            self.processor,
            stage=f"bench.{time.time_ns()}",
            samples=samples,
            seed=0,
            folder=place.cache.parent / f"{place.cache.name}.run",
        )
        for micro in _trained(loader, samples // reading.batch):
            yield [Seen(name, 0, 0.0) for name in micro["sample_ids"]]


def _shards(place: Place) -> Shards:
    return Shards(remote=place.stored, cache=str(place.cache)) if place.endpoint else Shards(local=place.stored)


def _trained(loader: StepLoader, steps: int) -> Iterator[Any]:
    for step, batches in zip(range(steps), loader, strict=False):
        yield batches[0]
        loader.commit(step)
    loader.close()


class LitData:
    """Chunks of `litdata.optimize`, read by its `StreamingDataset` and `StreamingDataLoader`."""

    package = "litdata"
    modules: tuple[str, ...] = ("litdata", "litdata.streaming.downloader", "obstore.store")
    stored = "litdata"

    def write(self, records: Sequence[Record], folder: Path, file_bytes: int) -> None:
        """See `StorageSide`. The facts are JSON here, too: a nested dictionary would become a column per value."""
        importlib.import_module("litdata").optimize(
            fn=functools.partial(_flat, records),
            inputs=list(range(len(records))),
            output_dir=str(folder),
            chunk_bytes=file_bytes,
            num_workers=1,
            start_method="fork",
            verbose=False,
        )

    def batches(self, place: Place, reading: Reading, samples: int) -> Iterator[list[Any]]:
        """See `StorageSide`."""
        litdata = importlib.import_module("litdata")
        if place.endpoint:
            _allow_http()
        remote = {"cache_dir": str(place.cache), "storage_options": _client(place)} if place.endpoint else {}
        dataset = litdata.StreamingDataset(place.stored, shuffle=True, **remote)
        yield from litdata.StreamingDataLoader(
            dataset,
            batch_size=reading.batch,
            num_workers=reading.workers,
            collate_fn=functools.partial(_each_flat, reading.work),
        )


class WebDataset:
    """Tar files, read in sequence through a shuffle buffer.

    From S3 it reads over HTTP, with `cached` by way of a folder of whole files and else as the bytes arrive.
    """

    package = "webdataset"
    modules: tuple[str, ...] = ("webdataset",)
    stored = "webdataset"

    def __init__(self, cached: bool = True) -> None:
        self.cached = cached

    def write(self, records: Sequence[Record], folder: Path, file_bytes: int) -> None:
        """See `StorageSide`. Three members a record, the small columns together: every member costs a header."""
        writer = importlib.import_module("webdataset").ShardWriter
        folder.mkdir(parents=True, exist_ok=True)
        with writer(str(folder / "%05d.tar"), maxsize=file_bytes, maxcount=10**9, verbose=0) as tar:
            for number, record in enumerate(records):
                small = {key: record[key] for key in ("schema", "id", "kind", "facts")}
                parts = {"small": json.dumps(small).encode(), "arrays": record["arrays"], "frames": record["frames"]}
                tar.write({"__key__": f"{number:08d}", **parts})

    def batches(self, place: Place, reading: Reading, samples: int) -> Iterator[list[Any]]:
        """See `StorageSide`."""
        wds = importlib.import_module("webdataset")
        cache = str(place.cache) if place.endpoint and self.cached else None
        dataset = (
            wds.WebDataset(self._urls(place), shardshuffle=100, cache_dir=cache)
            .shuffle(1000)
            .map(functools.partial(_of_members, reading.work))
            .batched(reading.batch, collation_fn=list)
        )
        yield from wds.WebLoader(dataset, batch_size=None, num_workers=reading.workers)

    def _urls(self, place: Place) -> list[str]:
        root = f"{place.endpoint}/{place.stored.removeprefix('s3://')}" if place.endpoint else place.stored
        return [f"{root}/{name}" for name in place.files]


RIVALS: dict[str, StorageSide] = {
    "streaming": Plain(),
    "litdata": LitData(),
    "webdataset": WebDataset(),
    "webdataset, uncached": WebDataset(cached=False),
}


def _each(work: Callable[[Record], Any], records: Sequence[Record]) -> list[Any]:
    return [work(record) for record in records]


def _flat(records: Sequence[Record], number: int) -> dict[str, Any]:
    return {**records[number], "facts": json.dumps(records[number]["facts"])}


def _each_flat(work: Callable[[Record], Any], records: Sequence[Record]) -> list[Any]:
    return [work({**record, "facts": json.loads(record["facts"])}) for record in records]


def _allow_http() -> None:
    """LitData 0.2.76 refuses endpoints without TLS (`BadScheme`) and has no option for it; its client's options do."""
    options = getattr(importlib.import_module("litdata.streaming.downloader"), "_OBSTORE_CLIENT_OPTIONS", {})
    options["allow_http"] = True


def _of_members(work: Callable[[Record], Any], members: Mapping[str, Any]) -> Any:
    return work({**json.loads(members["small"]), "arrays": members["arrays"], "frames": members["frames"]})


def _client(place: Place) -> dict[str, Any]:
    return {
        "endpoint_url": place.endpoint,
        "aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
        "region_name": os.environ["AWS_DEFAULT_REGION"],
    }
