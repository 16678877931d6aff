"""What a manifest vouches for: bytes always, their author where there is a key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from framework.checkpoint.manifest import (
    KEY,
    MANIFEST,
    SIGNATURE,
    CheckpointError,
    commit,
    entry_of,
    file_hash,
    files_in,
    problems,
)
from framework.checkpoint.retention import KeepLast
from framework.checkpoint.store import CheckpointStore
from framework.run.layout import COMMIT
from tests.checkpoint.toy import make

OURS, THEIRS = "0123456789abcdef" * 4, "fedcba9876543210" * 4


def folder(tmp_path: Path) -> Path:
    """A folder with one file, as a writer commits it."""
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "state.json").write_text("{}")
    recommit(tmp_path)
    return tmp_path


def recommit(checkpoint: Path) -> None:
    """Commit `checkpoint` as whoever can write the folder and knows this environment's key can."""
    for name in (COMMIT, MANIFEST, SIGNATURE):
        (checkpoint / name).unlink(missing_ok=True)
    commit(checkpoint, {name: entry_of(checkpoint / name) for name in files_in(checkpoint)})


def test_without_a_key_nothing_is_signed_and_nothing_is_asked_for(tmp_path: Path) -> None:
    assert not (folder(tmp_path) / SIGNATURE).exists()
    assert problems(tmp_path) == []


def test_a_signed_manifest_verifies_with_its_key_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, OURS)
    folder(tmp_path)
    assert problems(tmp_path) == []
    monkeypatch.setenv(KEY, THEIRS)
    assert "another key, or the manifest was changed" in problems(tmp_path)[0]
    monkeypatch.delenv(KEY)
    assert problems(tmp_path) == [], "a signature is asked for only where there is a key"


@pytest.mark.attack(
    "checkpoint", "a consistent checkpoint without the key, or with another", "refused where a key is set"
)
@pytest.mark.parametrize("key", [None, THEIRS])
def test_a_forgers_consistent_checkpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    monkeypatch.setenv(KEY, OURS)
    folder(tmp_path)
    monkeypatch.delenv(KEY) if key is None else monkeypatch.setenv(KEY, key)
    (tmp_path / "state.json").write_text('{"step": 7}')
    recommit(tmp_path)
    assert problems(tmp_path) == []
    monkeypatch.setenv(KEY, OURS)
    (problem,) = problems(tmp_path)
    assert SIGNATURE in problem
    assert KEY in problem


@pytest.mark.attack("checkpoint", "an old signature on new weights", "refused")
def test_an_old_signature_does_not_cover_a_new_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, OURS)
    old = (folder(tmp_path) / SIGNATURE).read_text()
    (tmp_path / "state.json").write_text('{"step": 7}')
    recommit(tmp_path)
    (tmp_path / SIGNATURE).write_text(old)
    assert "the manifest was changed" in problems(tmp_path)[0]


@pytest.mark.attack("checkpoint", "a key that can be guessed", "refused")
def test_a_short_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret")
    with pytest.raises(CheckpointError, match="at least 32"):
        folder(tmp_path)


@pytest.mark.attack("checkpoint", "a manifest that is malformed or leads outside", "refused")
@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("[]", "lists no files"),
        ('{"files": {}}', "lists no files"),
        ("{", "no framework wrote this"),
        ("[" * 100_000, "nested too deeply"),
        ('{"files": {"../../secret": {"bytes": 1, "sha256": "0"}}}', "outside the checkpoint"),
        ('{"files": {"/etc/hostname": {"bytes": 1, "sha256": "0"}}}', "outside the checkpoint"),
        ('{"files": {"state.json": 3}}', "not an entry"),
    ],
)
def test_a_malformed_manifest_is_a_problem_and_no_exception(tmp_path: Path, content: str, fault: str) -> None:
    folder(tmp_path)
    (tmp_path / MANIFEST).write_text(content)
    (tmp_path / COMMIT).write_text(file_hash(tmp_path / MANIFEST))
    assert fault in problems(tmp_path)[0]


@pytest.mark.attack("checkpoint", "a newer checkpoint without a signature", "passed over")
def test_a_store_passes_over_what_is_not_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, OURS)
    store = CheckpointStore(tmp_path, KeepLast(9))
    store.save(5, 1, *make(0), {}, {})
    monkeypatch.delenv(KEY)
    store.save(10, 1, *make(0), {}, {})
    monkeypatch.setenv(KEY, OURS)
    newest = store.newest()
    assert newest is not None
    assert newest.step == 5
    assert json.loads((newest.folder / MANIFEST).read_text())["files"]
