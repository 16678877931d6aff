"""Storage of shards, a folder or an S3 bucket, and the retries with which it is read."""

from __future__ import annotations

import errno
import functools
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from framework.recipe.component import component
from framework.recipe.ranges import Wait

log = logging.getLogger(__name__)

T = TypeVar("T")
_BUILDING = threading.Lock()
CHUNK = 1 << 20
REFUSALS = (401, 403)
EXPIRED = ("ExpiredToken", "InvalidToken")
"""Error codes of refused credentials that S3 answers with status 400."""
DIGEST = "sha256"
"""The name under which an object's metadata have the digest of its content."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a full local disk, which waiting does not cure."""


class Storage(Protocol):
    """Files by name."""

    @property
    def where(self) -> str:
        """Its name in error messages."""
        ...

    def fetch(self, name: str, to: Path) -> None:
        """Copies file `name` to `to`. Raises `FileNotFoundError` if it is absent, else `OSError`."""
        ...


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of this machine's file system: a disk, NFS or FSx."""

    where: str

    def fetch(self, name: str, to: Path) -> None:
        """See `Storage`."""
        shutil.copyfile(Path(self.where) / name, to)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A prefix of an S3 bucket, `s3://bucket/prefix`.

    Credentials, region and endpoint (`AWS_ENDPOINT_URL`, or `S3_ENDPOINT_URL` as in mosaicml-streaming) come from the
    environment, as usual on AWS; they are neither stored nor logged.
    """

    where: str
    """The URL of the prefix."""
    stall_s: float = 20.0
    """Seconds without data after which a connection is abandoned."""

    def fetch(self, name: str, to: Path) -> None:
        """See `Storage`."""
        with self._told(name):
            body = _client(self.stall_s).get_object(**self._address(name))["Body"]
            with to.open("wb") as file:
                for chunk in body.iter_chunks(CHUNK):
                    file.write(chunk)

    def put(self, file: Path, name: str, digest: str) -> None:
        """Stores a file as `name`, with its `digest` next to it. Raises `OSError`."""
        address, facts = self._address(name), {"Metadata": {DIGEST: digest}}
        with self._told(name):
            _client(self.stall_s).upload_file(str(file), *address.values(), ExtraArgs=facts)

    def digest(self, name: str) -> str | None:
        """Returns the digest that `name` was `put` with; None where it is absent or has none. Raises `OSError`."""
        try:
            with self._told(name):
                metadata: dict[str, str] = _client(self.stall_s).head_object(**self._address(name))["Metadata"]
        except FileNotFoundError:
            return None
        return metadata.get(DIGEST)

    def _address(self, name: str) -> dict[str, str]:
        url = urlsplit(f"{self.where.rstrip('/')}/{name}")
        return {"Bucket": url.netloc, "Key": url.path.lstrip("/")}

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """Within it `name` is asked for. Raises what fails as `OSError`, without a credential."""
        from boto3.exceptions import S3UploadFailedError
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError

        try:
            yield
        except ClientError as error:
            facts = error.response.get("Error", {})
            message = f"{self.where}/{name}: {facts.get('Code')} {facts.get('Message', '')}".rstrip()
            raise _kind(error.response)(message) from None
        except BotoCoreError as error:
            permanent = {NoCredentialsError: PermissionError, ParamValidationError: FileNotFoundError}
            kind = permanent.get(type(error), ConnectionError)
            raise kind(f"{self.where}/{name}: {type(error).__name__}: {error}") from None
        except S3UploadFailedError as error:  # which hides what S3 answered
            cause = error.__context__
            kind = _kind(cause.response) if isinstance(cause, ClientError) else ConnectionError
            raise kind(f"{self.where}/{name}: {cause or error}") from None


def _kind(response: dict[str, Any]) -> type[OSError]:
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if status == 404:
        return FileNotFoundError
    refused = status in REFUSALS or response.get("Error", {}).get("Code") in EXPIRED
    return PermissionError if refused else ConnectionError


def _client(stall_s: float) -> Any:
    """Returns this process's client, which one thread builds and all share."""
    with _BUILDING:
        return _client_of(os.getpid(), stall_s)


@functools.cache
def _client_of(process: int, stall_s: float) -> Any:
    from botocore.config import Config

    once = {"total_max_attempts": 1}  # `Patience` retries
    config = Config(connect_timeout=stall_s, read_timeout=stall_s, retries=once, max_pool_connections=32)
    return _session().client("s3", endpoint_url=os.environ.get("S3_ENDPOINT_URL"), config=config)


@functools.cache
def _session() -> Any:
    """Returns the session, which forks inherit: it holds the service description, which takes a third of a second to
    read. Connections do not survive a fork; they belong to the clients.
    """
    import boto3

    return boto3.session.Session()


def storage_at(where: str, stall_s: float = 20.0) -> Storage:
    """Returns the storage behind a URL or the path of a folder. Raises `ValueError` for an unsupported scheme."""
    scheme = where.partition("://")[0] if "://" in where else ""
    if scheme == "s3":
        return Bucket(where, stall_s)
    if scheme in ("", "file"):
        return Folder(where.removeprefix("file://"))
    raise ValueError(f"{where}: {scheme}:// is not supported; give s3://bucket/prefix or a folder")


@component
@dataclass(frozen=True, slots=True)
class Patience:
    """Retries of failing storage, with exponential back-off and full jitter.

    A full local disk is not retried. Full jitter: Brooker 2015, "Exponential Backoff and Jitter", AWS Architecture
    Blog.
    """

    budget_s: Wait = 900.0
    """Seconds that storage may fail before the run does."""
    absent_s: Wait = 5.0
    """Seconds for files that are missing (404) or refused for the credentials, which waiting rarely cures."""
    first_s: Wait = 0.25
    """The longest first wait (s); it doubles with every try."""
    most_s: Wait = 30.0
    """The longest wait (s)."""

    def retry(self, call: Callable[[], T], what: str) -> T:
        """Returns what `call` returns, once it succeeds. Raises its last `OSError` when the time is up."""

        def is_retryable(error: BaseException) -> bool:
            return isinstance(error, OSError) and error.errno not in FULL

        def is_over(state: RetryCallState) -> bool:
            assert state.outcome is not None
            absent = isinstance(state.outcome.exception(), (FileNotFoundError, PermissionError))
            return stop_after_delay(self.absent_s if absent else self.budget_s)(state)

        def log_retry(state: RetryCallState) -> None:
            assert state.outcome is not None
            assert state.next_action is not None
            wait, error = state.next_action.sleep, state.outcome.exception()
            log.warning("%s: %s; try %d in %.1f s", what, error, state.attempt_number + 1, wait)

        waits = wait_random_exponential(multiplier=self.first_s, max=self.most_s)
        retrying = Retrying(
            stop=is_over, wait=waits, retry=retry_if_exception(is_retryable), before_sleep=log_retry, reraise=True
        )
        return retrying(call)
