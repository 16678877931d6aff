"""Storage that fails: what waiting heals is waited for, all else is told at once, and never a credential with it."""

from __future__ import annotations

import errno
import logging
import os
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from framework.data.shards import storage
from framework.data.shards.storage import Bucket, Folder, Patience, Storage, storage_at

if TYPE_CHECKING:
    from tests.data.shards.s3 import S3

pytest_plugins = ("tests.data.shards.s3",)

CONTENT = bytes(range(256)) * 40
STALL_S = 0.5
QUICK = Patience(budget_s=1.5, absent_s=0.3, first_s=0.02, most_s=0.1)
LONG = Patience(budget_s=20.0, absent_s=0.3, first_s=0.02, most_s=0.1)


@pytest.fixture
def bucket(s3: S3, tmp_path: Path) -> Bucket:
    """A bucket that holds one file, and a client that has been made: that takes longer than what is measured here."""
    (tmp_path / "there").write_bytes(CONTENT)
    s3.put_file(tmp_path / "there", "stream/there")
    bucket = Bucket(f"{s3.where}/stream")
    bucket.fetch("there", tmp_path / "here")
    s3.gets.clear()
    return bucket


class Flaky:
    """Fails a few times before it works."""

    def __init__(self, failures: int, error: OSError) -> None:
        self.failures = failures
        self.error = error
        self.tries = 0

    def __call__(self) -> str:
        self.tries += 1
        if self.tries <= self.failures:
            raise self.error
        return "well"


def test_a_file_is_fetched_from_a_folder_and_from_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    for where in (str(tmp_path), f"file://{tmp_path}", bucket.where):
        storage_at(where).fetch("there", tmp_path / "here")
        assert (tmp_path / "here").read_bytes() == CONTENT
        (tmp_path / "here").unlink()


def test_threads_that_ask_at_once_share_one_client(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client takes tenths of a second of a core; eight of them at the start hid the first batch for seconds."""
    built, make = [], boto3.session.Session.client

    def counted(session: Any, *arguments: Any, **named: Any) -> Any:
        built.append(arguments)
        time.sleep(0.05)
        return make(session, *arguments, **named)

    from tests.data.shards.s3 import forget_clients

    forget_clients()
    monkeypatch.setattr(boto3.session.Session, "client", counted)
    with ThreadPoolExecutor(8) as pool:
        clients = list(pool.map(lambda _: storage._client(STALL_S), range(8)))
    assert len(built) == 1
    assert all(client is clients[0] for client in clients)


def test_what_is_not_there_is_told_from_what_cannot_be_reached(bucket: Bucket, s3: S3, tmp_path: Path) -> None:
    nowhere = (Bucket("s3://no-such-bucket/stream"), Bucket("s3://no bucket at all/stream"))
    everywhere: tuple[Storage, ...] = (Folder(str(tmp_path)), bucket, *nowhere)
    for place in everywhere:
        with pytest.raises(FileNotFoundError, match="absent"):
            place.fetch("absent", tmp_path / "here")
    s3.out()
    with pytest.raises(ConnectionError, match=r"stream/there: \w+Error: "):
        bucket.fetch("there", tmp_path / "here")


def test_a_missing_key_is_asked_for_a_moment_and_not_for_the_whole_budget(bucket: Bucket, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match="stream/absent: NoSuchKey"):
        LONG.retry(lambda: bucket.fetch("absent", tmp_path / "here"), "absent")
    assert LONG.absent_s <= time.monotonic() - start < LONG.budget_s / 2


def test_a_key_that_appears_a_moment_later_is_found(bucket: Bucket, s3: S3, tmp_path: Path) -> None:
    s3.injure("there", times=2, status=404)
    LONG.retry(lambda: bucket.fetch("there", tmp_path / "here"), "there")
    assert s3.gets == {"stream/there": 3}


@pytest.mark.parametrize("code", ["refused", "expired", "none at all"])
def test_wrong_credentials_are_told_within_a_moment(
    code: str, bucket: Bucket, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if code == "none at all":
        for name in [name for name in os.environ if name.startswith(("AWS_ACCESS", "AWS_SECRET", "AWS_SESSION"))]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        from tests.data.shards.s3 import forget_clients

        forget_clients()
    else:
        s3.injure(status=403 if code == "refused" else 400)
    start = time.monotonic()
    with pytest.raises(PermissionError, match=r"InvalidAccessKeyId|ExpiredToken|NoCredentials"):
        LONG.retry(lambda: bucket.fetch("there", tmp_path / "here"), "there")
    assert time.monotonic() - start < LONG.budget_s / 2


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_that_recovers_is_asked_until_it_does(status: int, bucket: Bucket, s3: S3, tmp_path: Path) -> None:
    s3.injure(times=3, status=status)
    with pytest.raises(ConnectionError, match=r"there: (SlowDown|InternalError)"):
        bucket.fetch("there", tmp_path / "here")
    assert s3.gets == {"stream/there": 1}, "patience alone asks again: tries would multiply"
    LONG.retry(lambda: bucket.fetch("there", tmp_path / "here"), "there")
    assert s3.gets == {"stream/there": 4}
    assert (tmp_path / "here").read_bytes() == CONTENT


@pytest.mark.parametrize("place", [0, 100])
def test_a_connection_that_stalls_is_given_up_and_asked_again(
    place: int, bucket: Bucket, s3: S3, tmp_path: Path
) -> None:
    impatient = Bucket(bucket.where, STALL_S)
    impatient.fetch("there", tmp_path / "here")
    s3.gets.clear()
    s3.injure(times=1, stops_at=place)
    start = time.monotonic()
    LONG.retry(lambda: impatient.fetch("there", tmp_path / "here"), "there")
    assert STALL_S <= time.monotonic() - start < LONG.budget_s / 2
    assert s3.gets == {"stream/there": 2}
    assert (tmp_path / "here").read_bytes() == CONTENT


def test_a_slow_connection_that_goes_on_is_not_given_up(bucket: Bucket, s3: S3, tmp_path: Path) -> None:
    s3.injure(rate=8_000)
    start = time.monotonic()
    Bucket(bucket.where, STALL_S).fetch("there", tmp_path / "here")
    assert time.monotonic() - start > 2 * STALL_S
    assert (tmp_path / "here").read_bytes() == CONTENT


def test_a_body_that_ends_early_is_a_failure_that_waiting_heals(bucket: Bucket, s3: S3, tmp_path: Path) -> None:
    s3.injure(times=2, ends_at=len(CONTENT) - 1)
    with pytest.raises(ConnectionError, match="there: "):
        bucket.fetch("there", tmp_path / "here")
    LONG.retry(lambda: bucket.fetch("there", tmp_path / "here"), "there")
    assert (tmp_path / "here").read_bytes() == CONTENT


def test_a_bit_that_flips_on_the_way_is_found_where_storage_keeps_checksums(s3: S3, tmp_path: Path) -> None:
    (tmp_path / "summed").write_bytes(CONTENT)
    s3.put_file(tmp_path / "summed", "stream/summed", checksum=True)
    s3.injure(times=1, flips=77)
    LONG.retry(lambda: Bucket(f"{s3.where}/stream").fetch("summed", tmp_path / "here"), "summed")
    assert (tmp_path / "here").read_bytes() == CONTENT
    assert s3.gets == {"stream/summed": 2}


@pytest.mark.guarantee("An outage of storage is waited for, up to `data.cache.patience.budget_s`, and loses no sample")
def test_an_outage_ends_in_an_error_when_the_budget_does(bucket: Bucket, s3: S3, tmp_path: Path) -> None:
    s3.out()
    start = time.monotonic()
    with pytest.raises(ConnectionError, match="stream/there: EndpointConnectionError"):
        QUICK.retry(lambda: bucket.fetch("there", tmp_path / "here"), "there")
    assert QUICK.budget_s <= time.monotonic() - start < QUICK.budget_s + 5.0


@pytest.mark.guarantee("An outage of storage is waited for, up to `data.cache.patience.budget_s`, and loses no sample")
def test_an_outage_within_the_budget_is_waited_for(bucket: Bucket, s3: S3, tmp_path: Path) -> None:
    s3.out_after(gets=0, seconds=0.5)
    LONG.retry(lambda: bucket.fetch("there", tmp_path / "here"), "there")
    assert (tmp_path / "here").read_bytes() == CONTENT


def test_a_full_disk_is_not_waited_for() -> None:
    flaky = Flaky(1, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space left"):
        LONG.retry(flaky, "shard")
    assert flaky.tries == 1


def test_a_mistake_is_no_failure_of_storage_and_is_raised_at_once() -> None:
    answers = iter(["a number", "1"])
    with pytest.raises(ValueError, match="a number"):
        LONG.retry(lambda: int(next(answers)), "shard")
    assert next(answers) == "1"


def test_waits_are_drawn_below_a_bound_that_doubles_up_to_the_most(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    for _ in range(40):
        assert Patience(first_s=0.5, most_s=6.0).retry(Flaky(6, ConnectionError("down")), "shard") == "well"
    rounds = [waits[tried::6] for tried in range(6)]
    for bound, drawn in zip((0.5, 1.0, 2.0, 4.0, 6.0, 6.0), rounds, strict=True):
        assert max(drawn) <= bound
        assert max(drawn) > 0.75 * bound, "up to the bound"
        assert min(drawn) < 0.25 * bound, "full jitter: ranks that failed together do not come back together"
    assert "shard: down; try 2 in" in caplog.text
    assert "shard: down; try 7 in" in caplog.text


@pytest.mark.attack("archive", "storage errors that quote credentials", "not told")
@pytest.mark.parametrize("trouble", ["refused", "outage", "error", "flip"])
@pytest.mark.fast_cases(1)
def test_no_credential_is_ever_told(
    trouble: str, bucket: Bucket, s3: S3, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.data.shards.s3 import SECRETS

    s3.put_file(tmp_path / "there", "stream/there", checksum=True)
    match trouble:
        case "outage":
            s3.out()
        case "flip":
            s3.injure(flips=77)
        case _:
            s3.injure(status=403 if trouble == "refused" else 503)
    with caplog.at_level(logging.INFO), pytest.raises(OSError, match="stream/there") as raised:
        QUICK.retry(lambda: bucket.fetch("there", tmp_path / "here"), "there")
    assert "try 2" in caplog.text
    told = caplog.text + "".join(traceback.format_exception(raised.value))
    for secret in SECRETS.values():
        assert secret not in told


def test_a_scheme_that_is_not_spoken_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"gs://bucket/stream: gs:// is not supported; give s3://"):
        storage_at("gs://bucket/stream")
