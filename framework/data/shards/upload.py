"""Copies a finished stream to a bucket, file by file, so that a copy that was ended goes on where it was."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

from framework.data.shards.storage import Bucket, Patience
from framework.scene.types import SceneError

log = logging.getLogger(__name__)

INDEX = "index.json"
REPORTS = ("manifest.json", "report.json", "report.html")


def check_free(bucket: Bucket, folder: Path, patience: Patience) -> None:
    """Raises `SceneError` where the bucket's prefix has another stream than `folder` will have, or may have: a training
    that reads it would find its shards exchanged. Raises `OSError` where the bucket can't be read.
    """
    digest = patience.retry(functools.partial(bucket.digest, INDEX), bucket.where)
    index = folder / INDEX
    if digest is None:
        with tempfile.TemporaryDirectory() as place:
            try:
                bucket.fetch(INDEX, Path(place, INDEX))
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                return
    elif index.is_file() and digest_of(index) == digest:
        return
    raise SceneError(f"{bucket.where}: holds another stream; write to another prefix, or remove this one")


def upload(folder: Path, bucket: Bucket, patience: Patience) -> int:
    """Copies the stream in `folder`, and its reports; what the bucket has already stays. The index comes last: until
    then there is no stream. Returns the number of files that were copied.

    Raises `OSError` where the bucket fails for longer than `patience`.
    """
    names, copied = list(stream_files(folder)), 0
    for number, name in enumerate(names):
        digest = digest_of(folder / name)
        if patience.retry(functools.partial(bucket.digest, name), name) == digest:
            continue
        patience.retry(functools.partial(bucket.put, folder / name, name, digest), name)
        copied += 1
        log.info("%s: %d of %d files copied", bucket.where, number + 1, len(names))
    return copied


def stream_files(folder: Path) -> Iterator[str]:
    """Yields the files of a stream by their names in `folder`: the shards, the reports that are there, the index."""
    for shard in json.loads((folder / INDEX).read_bytes())["shards"]:
        yield (shard.get("zip_data") or shard["raw_data"])["basename"]
    yield from (name for name in REPORTS if (folder / name).is_file())
    yield INDEX


def digest_of(file: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
