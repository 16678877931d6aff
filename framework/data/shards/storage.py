"""Where shards are kept: a folder, or a bucket behind `s3://`; and the patience with which they are asked for."""

from __future__ import annotations

import errno
import functools
import logging
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

log = logging.getLogger(__name__)

T = TypeVar("T")
_BUILDING = threading.Lock()
CHUNK = 1 << 20
REFUSALS = (401, 403)
EXPIRED = ("ExpiredToken", "InvalidToken")
"""Refusals that S3 answers with 400."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the local disk says when it is full: waiting does not help, making room does."""


class Storage(Protocol):
    """Files by name."""

    @property
    def where(self) -> str:
        """What errors call it."""
        ...

    def fetch(self, name: str, to: Path) -> None:
        """Copy file `name` to `to`. Raises `FileNotFoundError` when there is none, `OSError` for all other failures."""
        ...


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of this machine's file system, be it a disk, NFS or FSx."""

    where: str

    def fetch(self, name: str, to: Path) -> None:
        """See `Storage`."""
        shutil.copyfile(Path(self.where) / name, to)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A prefix of an S3 bucket, `s3://bucket/prefix`.

    Credentials, region and endpoint (`AWS_ENDPOINT_URL`, or `S3_ENDPOINT_URL` as mosaicml-streaming has it) come from
    the environment, as everywhere on AWS; they are neither kept nor logged. A connection on which nothing arrives for
    `stall_s` seconds is given up.
    """

    where: str
    stall_s: float = 20.0

    def fetch(self, name: str, to: Path) -> None:
        """See `Storage`."""
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError

        url = urlsplit(f"{self.where.rstrip('/')}/{name}")
        try:
            body = _client(self.stall_s).get_object(Bucket=url.netloc, Key=url.path.lstrip("/"))["Body"]
            with to.open("wb") as file:
                for chunk in body.iter_chunks(CHUNK):
                    file.write(chunk)
        except ClientError as error:
            facts = error.response.get("Error", {})
            told = f"{self.where}/{name}: {facts.get('Code')} {facts.get('Message', '')}".rstrip()
            raise _kind(error.response)(told) from None
        except BotoCoreError as error:
            hopeless = {NoCredentialsError: PermissionError, ParamValidationError: FileNotFoundError}
            kind = hopeless.get(type(error), ConnectionError)
            raise kind(f"{self.where}/{name}: {type(error).__name__}: {error}") from None


def _kind(response: dict[str, Any]) -> type[OSError]:
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if status == 404:
        return FileNotFoundError
    refused = status in REFUSALS or response.get("Error", {}).get("Code") in EXPIRED
    return PermissionError if refused else ConnectionError


def _client(stall_s: float) -> Any:
    """This process's client; one thread at a time builds it, and the others of a pool share it."""
    with _BUILDING:
        return _client_of(os.getpid(), stall_s)


@functools.cache
def _client_of(process: int, stall_s: float) -> Any:
    from botocore.config import Config

    once = {"total_max_attempts": 1}  # patience is ours, see below
    config = Config(connect_timeout=stall_s, read_timeout=stall_s, retries=once, max_pool_connections=32)
    return _session().client("s3", endpoint_url=os.environ.get("S3_ENDPOINT_URL"), config=config)


@functools.cache
def _session() -> Any:
    """What forks inherit: the description of the service, which takes a third of a second to read. Connections, which
    do not survive a fork, belong to the clients.
    """
    import boto3

    return boto3.session.Session()


def forget_clients() -> None:
    """Have the environment read anew: credentials or an endpoint that changed while the process lives."""
    _client_of.cache_clear()
    _session.cache_clear()


def storage_at(where: str, stall_s: float = 20.0) -> Storage:
    """The storage behind a URL or the path of a folder. Raises `ValueError` for a scheme that nothing here speaks."""
    scheme = where.partition("://")[0] if "://" in where else ""
    if scheme == "s3":
        return Bucket(where, stall_s)
    if scheme in ("", "file"):
        return Folder(where.removeprefix("file://"))
    raise ValueError(f"{where}: {scheme}:// is not spoken here; give s3://bucket/prefix or a folder")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long storage may fail before a run does: `budget_s` seconds, with exponential back-off and full jitter.

    What is not there (404), or refused for its credentials, becomes no better by waiting: that is tried for `absent_s`;
    and what the local disk has no room for, once.
    Full jitter: Brooker 2015, "Exponential Backoff and Jitter", AWS Architecture Blog.
    """

    budget_s: float = 900.0
    absent_s: float = 5.0
    first_s: float = 0.25
    most_s: float = 30.0

    def ask(self, call: Callable[[], T], what: str) -> T:
        """What `call` returns, once it does. Raises its last `OSError` when patience ends."""

        def hopeful(error: BaseException) -> bool:
            return isinstance(error, OSError) and error.errno not in FULL

        def enough(state: RetryCallState) -> bool:
            assert state.outcome is not None
            absent = isinstance(state.outcome.exception(), (FileNotFoundError, PermissionError))
            return stop_after_delay(self.absent_s if absent else self.budget_s)(state)

        def tell(state: RetryCallState) -> None:
            assert state.outcome is not None
            assert state.next_action is not None
            wait, error = state.next_action.sleep, state.outcome.exception()
            log.warning("%s: %s; try %d in %.1f s", what, error, state.attempt_number + 1, wait)

        waits = wait_random_exponential(multiplier=self.first_s, max=self.most_s)
        retrying = Retrying(stop=enough, wait=waits, retry=retry_if_exception(hopeful), before_sleep=tell, reraise=True)
        return retrying(call)
