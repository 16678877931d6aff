"""A local S3 server behind a proxy that injures what passes: the fixture `s3`.

The proxy, not the server, is what the code under test talks to; files are put into the server past it. An injury lasts
until `heal`, or for so many GETs of the keys that it is meant for.
"""

from __future__ import annotations

import http.client
import itertools
import logging
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from moto.server import ThreadedMotoServer

from framework.data.shards import storage

PREFIX = "shards-"
BUCKETS = (f"{PREFIX}{number}" for number in itertools.count())
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAWHOMTHELOGSNEVERNAME",
    "AWS_SECRET_ACCESS_KEY": "a-secret-that-must-stay-one",
    "AWS_SESSION_TOKEN": "a-token-that-must-stay-one",
}
ERRORS = {
    400: ("ExpiredToken", "The provided token has expired."),
    403: ("InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."),
    404: ("NoSuchKey", "The specified key does not exist."),
    500: ("InternalError", "We encountered an internal error. Please try again."),
    503: ("SlowDown", "Please reduce your request rate."),
}
FOR_EVER = 1 << 30

Reply = tuple[int, dict[str, str], bytes]


@dataclass
class Injury:
    """What happens to the next `times` GETs of keys that end with `key`.

    `status`: answered with that error. `wait_s`: answered so much later. `rate`: sent at so many bytes a second.
    `stops_at`: sent up to that byte, then nothing more comes. `ends_at`: the connection is closed there. `flips`: the
    byte that is flipped.
    """

    key: str = ""
    times: int = FOR_EVER
    status: int | None = None
    wait_s: float = 0.0
    rate: int | None = None
    stops_at: int | None = None
    ends_at: int | None = None
    flips: int | None = None


def forget_clients() -> None:
    """Has boto3 read the environment again."""
    storage._client_of.cache_clear()
    storage._session.cache_clear()


@dataclass
class S3:
    """The server, its proxy, and what has been asked of it: `gets` are the GETs of each key, answered or not."""

    proxy: _Proxy
    client: Any
    bucket: str
    gets: Counter[str] = field(default_factory=Counter)
    injuries: list[Injury] = field(default_factory=list)
    outages: int = 0
    outage: tuple[int, int, float] = (0, 0, 0.0)
    lock: threading.Lock = field(default_factory=threading.Lock)
    healed: threading.Event = field(default_factory=threading.Event)

    @property
    def where(self) -> str:
        """The bucket's URL."""
        return f"s3://{self.bucket}"

    def put(self, folder: Path, prefix: str = "stream") -> str:
        """Put the shards and the index of a folder; returns where they are."""
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".zstd", ".mds") or path.name == "index.json":
                self.put_file(path, f"{prefix}/{path.relative_to(folder)}")
        return f"{self.where}/{prefix}"

    def put_file(self, file: Path, key: str, checksum: bool = False) -> None:
        """Put one file; with `checksum`, S3 keeps and sends one of its own, by which the client finds flipped bits."""
        arguments = {"ChecksumAlgorithm": "CRC32"} if checksum else {}
        self.client.put_object(Bucket=self.bucket, Key=key, Body=file.read_bytes(), **arguments)

    def injure(self, key: str = "", times: int = FOR_EVER, **how: Any) -> None:
        """See `Injury`."""
        self.healed.clear()
        self.injuries.append(Injury(key, times, **how))

    def heal(self) -> None:
        """All is well again; who waits for the rest of a body is cut off."""
        self.injuries.clear()
        self.outages = 0
        self.healed.set()
        self.proxy.open()

    def out(self) -> None:
        """From now on connections are refused, and those that stand are cut."""
        self.proxy.shut()

    def out_after(self, gets: int, seconds: float, times: int = 1) -> None:
        """An outage of so many seconds once so many more GETs were answered; and again, until it was so many times."""
        self.outages = times
        self.outage = (self.gets.total() + gets, gets, seconds)

    def asked(self, key: str = "") -> int:
        """GETs of keys that end with `key`."""
        with self.lock:
            return sum(count for name, count in self.gets.items() if name.endswith(key))

    def wait_for(self, key: str, gets: int = 1) -> None:
        """Until keys that end with `key` were asked for so often."""
        wait_until(lambda: self.asked(key) >= gets)

    def ask(self, key: str) -> Injury:
        """Count a GET; what is to become of it."""
        with self.lock:
            self.gets[key] += 1
            at, gap, seconds = self.outage
            if self.outages and self.gets.total() > at and self.proxy.shut():
                threading.Timer(seconds, self.proxy.open).start()
                self.outages -= 1
                self.outage = (self.gets.total() + gap, gap, seconds)
            for injury in self.injuries:
                if key.endswith(injury.key) and injury.times > 0:
                    injury.times -= 1
                    return injury
        return Injury()


class _Proxy(ThreadingHTTPServer):
    """Passes GETs on to `server`, as `s3` would have it."""

    block_on_close = False
    s3: S3

    def __init__(self, server: tuple[str, int]) -> None:
        with (
            socket.socket() as free
        ):  # by its number: a port that the kernel chose would change when it is opened again
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        super().__init__(("127.0.0.1", port), _Handler)
        self.socket.settimeout(0.5)  # who was announced may have gone, or been shut out, before it is accepted
        self.server = server
        self.up = threading.Event()
        self.up.set()
        self.turn = threading.Lock()
        self.errors: list[BaseException | None] = []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def shut(self) -> bool:
        """Refuse connections; whether they were taken until now."""
        with self.turn:
            if not self.up.is_set():
                return False
            self.up.clear()
            self.socket.shutdown(socket.SHUT_RDWR)  # closing would leave it open in every process forked meanwhile
            return True

    def open(self) -> None:
        with self.turn:
            if not self.up.is_set():
                self.socket.listen(128)
                self.up.set()

    def get_request(self) -> tuple[socket.socket, Any]:
        self.up.wait()
        return super().get_request()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who hung up need not be told of; what else fails would be taken for an injury."""
        error = sys.exception()
        if not isinstance(error, (BrokenPipeError, ConnectionResetError)):
            self.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    server: _Proxy

    def do_GET(self) -> None:
        s3 = self.server.s3
        _, bucket, key = self.path.partition("?")[0].split("/", 2)
        if bucket.startswith(PREFIX) and bucket != s3.bucket:
            return  # somebody whom an earlier test has left behind
        injury = s3.ask(key)
        time.sleep(injury.wait_s)
        if not self.server.up.is_set():
            return
        status, headers, body = _error(injury.status) if injury.status else self._passed_on()
        if injury.flips is not None:
            body = flipped(body, injury.flips)
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        step = max(1, injury.rate // 20) if injury.rate else 1 << 16
        end = min(n for n in (injury.stops_at, injury.ends_at, len(body)) if n is not None)
        for at in range(0, end, step):
            self.wfile.write(body[at : min(at + step, end)])
            time.sleep(0.05 if injury.rate else 0)
            if not self.server.up.is_set():
                return
        if injury.stops_at is not None:
            self.wfile.flush()
            s3.healed.wait(60)

    def _passed_on(self) -> Reply:
        connection = http.client.HTTPConnection(*self.server.server)
        connection.request("GET", self.path, headers=dict(self.headers.items()))
        answer = connection.getresponse()
        reply = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return reply

    def log_message(self, format: str, *args: Any) -> None:
        """Tests count, see `S3.gets`."""


def _error(status: int) -> Reply:
    code, message = ERRORS[status]
    key = f"<AWSAccessKeyId>{SECRETS['AWS_ACCESS_KEY_ID']}</AWSAccessKeyId>" if status == 403 else ""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message>{key}</Error>".encode()
    return status, {"Content-Type": "application/xml", "Content-Length": str(len(body))}, body


def flipped(content: bytes, place: int) -> bytes:
    """`content` with the lowest bit of a byte flipped."""
    injured = bytearray(content)
    injured[place] ^= 1
    return bytes(injured)


def flip(file: Path, place: int | None = None) -> None:
    """Flip a bit in the middle of a file, or of the byte given."""
    content = file.read_bytes()
    file.write_bytes(flipped(content, len(content) // 2 if place is None else place))


def wait_until(fulfilled: Callable[[], bool], seconds: float = 20.0) -> None:
    """Until it is; fails a test that would wait for longer."""
    end = time.monotonic() + seconds
    while not fulfilled():
        assert time.monotonic() < end, "the state was not reached in time"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def _servers() -> Iterator[tuple[_Proxy, Any]]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    proxy = _Proxy((host, port))
    plain = Config(request_checksum_calculation="when_required")
    keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "us-east-1"}
    client = boto3.session.Session(**keys).client("s3", endpoint_url=f"http://{host}:{port}", config=plain)
    yield proxy, client
    proxy.shutdown()
    server.stop()


@pytest.fixture
def s3(_servers: tuple[_Proxy, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """An empty bucket, and an environment in which boto3 finds it."""
    proxy, client = _servers
    bucket = next(BUCKETS)
    client.create_bucket(Bucket=bucket)
    for name, value in {**SECRETS, "AWS_ENDPOINT_URL": proxy.url, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("S3_ENDPOINT_URL", raising=False)
    forget_clients()
    proxy.s3 = S3(proxy, client, bucket)
    yield proxy.s3
    proxy.s3.heal()
    assert not proxy.errors
    forget_clients()
