"""The samples of a soak: an object store on loopback that can be taken away, and the shards in it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import tempfile
from pathlib import Path

from framework.data.sources.world import write_world
from tools.shards import merge

BUCKET = "soak"
SHARDS = 6
SCENES = 16
"""Scenes of a shard: few enough that a run reads all of them, more than the cache may keep."""
CACHED_FRACTION = 0.7
"""Fraction of the shards that the cache may keep, so that some are fetched again and again."""
KEYS = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1"}


class Store:
    """An S3 server in this process, which keeps its content while it is away. Needs moto."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.start()

    def start(self) -> None:
        """Accept connections."""
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.server.start()

    def stop(self) -> None:
        """Refuse connections."""
        self.server.stop()

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which workers find the store."""
        url = f"http://127.0.0.1:{self.port}"
        return KEYS | {"AWS_ENDPOINT_URL": url, "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1"}

    def put(self, folder: Path, prefix: str) -> str:
        """Upload the files below `folder` and return their URL."""
        import boto3

        url = self.environment["AWS_ENDPOINT_URL"]
        names = {"aws_access_key_id": "none", "aws_secret_access_key": "none", "region_name": "us-east-1"}
        client = boto3.session.Session(**names).client("s3", endpoint_url=url)
        client.create_bucket(Bucket=BUCKET)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            client.put_object(Bucket=BUCKET, Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes())
        return f"s3://{BUCKET}/{prefix}"


def write_stream(folder: Path) -> tuple[Path, float]:
    """Return a stream of `SHARDS` shards of the built-in world below `folder`, written once, and the size of its cache
    (GB).
    """
    stream = folder / "stream"
    if not (stream / "index.json").exists():
        shutil.rmtree(stream, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder) as parts:
            folders = [Path(parts, str(number)) for number in range(SHARDS)]
            for number, part in enumerate(folders):
                write_world(part, SCENES, SCENES * number, quiet=True)
            merge(stream, folders)
    sizes = [shard["raw_data"]["bytes"] for shard in json.loads((stream / "index.json").read_text())["shards"]]
    return stream, max(2.2 * max(sizes), CACHED_FRACTION * sum(sizes)) / 1e9


def stream_overrides(url: str, cache: Path, limit_gb: float) -> list[str]:
    """Return the overrides with which a recipe's broad stage reads the stream at `url`, with short timeouts."""
    key = "curriculum.stages.broad.mixture.parts.world.source"
    source = f"{{_target_: framework.data.stream.mixture.Shards, remote: '{url}', cache: '{cache}'}}"
    cache_policy = "data.cache={_target_: framework.data.shards.cache.CachePolicy"
    return [
        f"{key}={source}",
        f"{cache_policy}, limit_gb: {limit_gb:.6f}, stall_s: 2.0, "
        "patience: {_target_: framework.data.shards.storage.Patience, budget_s: 6.0}}",
    ]


def worker_environment(environment: dict[str, str]) -> dict[str, str]:
    """Return a worker's environment: this process's, updated by `environment`."""
    return {**os.environ, **environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
