"""Conversions to a bucket: ended while they upload they go on, and no other stream is replaced."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from framework.data.shards.storage import Bucket
from framework.data.stream.mixture import Shards, read_scenes
from tests.dialogues import written_conversations
from tools.convert.__main__ import main

if TYPE_CHECKING:
    from tests.data.shards.s3 import S3

pytest_plugins = ("tests.data.shards.s3",)


class Killed(BaseException):
    """Ends a conversion as a signal would."""


@pytest.fixture
def bucket(s3: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """A bucket of a server that takes files, too."""
    from tests.data.shards.s3 import forget_clients

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.client.meta.endpoint_url)
    forget_clients()
    return s3


def words(rows: Path, bucket: S3, staging: Path, *more: str) -> list[str]:
    out = f"{bucket.where}/talks/"
    places = ["--input", str(rows), "--out", out, "--staging", str(staging)]
    return ["--source", "conversations", *places, "--part-items", "8", *more]


def objects(bucket: S3) -> dict[str, bytes]:
    listed = bucket.client.list_objects_v2(Bucket=bucket.bucket).get("Contents", [])
    keys = [each["Key"] for each in listed]
    return {key: bucket.client.get_object(Bucket=bucket.bucket, Key=key)["Body"].read() for key in keys}


@pytest.mark.guarantee("A conversion that is killed while it uploads ends with the bytes of an undisturbed one.")
@pytest.mark.slow
def test_a_killed_upload_goes_on_and_ends_with_the_bytes_of_the_folder(
    bucket: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, staging = written_conversations(tmp_path / "rows"), tmp_path / "staging"
    put, names = Bucket.put, list[str]()

    def put_and_die(self: Bucket, file: Path, name: str, digest: str) -> None:
        if len(names) == 3:
            raise Killed
        put(self, file, name, digest)
        names.append(name)

    def put_and_count(self: Bucket, file: Path, name: str, digest: str) -> None:
        put(self, file, name, digest)
        names.append(name)

    monkeypatch.setattr(Bucket, "put", put_and_die)
    with pytest.raises(Killed):
        main(words(rows, bucket, staging))
    assert "talks/index.json" not in objects(bucket), "half a stream is none"
    monkeypatch.setattr(Bucket, "put", put_and_count)
    assert main(words(rows, bucket, staging)) == 0
    assert len(names) == len(set(names)), "what was there was not copied again"
    assert names[-1] == "index.json"
    assert sum(name.startswith("part-") for name in names) == 5
    (folder,) = staging.iterdir()
    assert objects(bucket) == {f"talks/{name}": (folder / name).read_bytes() for name in names}
    stream = Shards(remote=f"{bucket.where}/talks", cache=str(tmp_path / "cache"))
    assert len({scene.id for scene in read_scenes(stream)}) == 40
    assert main(words(rows, bucket, staging)) == 0, "the same again finds all of it"


@pytest.mark.slow
def test_another_stream_is_not_replaced(bucket: S3, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = written_conversations(tmp_path / "rows")
    assert main(words(rows, bucket, tmp_path / "one", "--split", "train")) == 0
    before = objects(bucket)
    assert main(words(rows, bucket, tmp_path / "two", "--split", "held_out")) == 1
    said = capsys.readouterr().err
    assert f"{bucket.where}/talks: holds another stream; write to another prefix, or remove this one" in said
    assert objects(bucket) == before


def test_a_bucket_that_is_not_there_is_told_before_anything_is_converted(
    bucket: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, staging = written_conversations(tmp_path / "rows"), tmp_path / "staging"
    bucket.client.delete_bucket(Bucket=bucket.bucket)
    assert main(words(rows, bucket, staging)) == 1
    assert "NoSuchBucket" in capsys.readouterr().err
    assert not staging.exists()


@pytest.mark.parametrize("out", ["gs://bucket/talks", "s3://bucket", "s3:///talks"])
def test_a_place_that_is_no_prefix_is_refused(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--source", "conversations", "--input", "rows", "--out", out])
    assert f"'{out}' is neither a folder nor s3://bucket/prefix" in capsys.readouterr().err
