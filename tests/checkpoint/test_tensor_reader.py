"""A checkpoint's description is read without running what its pickle says."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from framework.checkpoint.manifest import CheckpointError
from framework.checkpoint.tensor_reader import METADATA_FILE, TensorReader, read_description


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tensors = {"a": torch.arange(12.0).view(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)}
    dcp.save(tensors, storage_writer=dcp.FileSystemWriter(tmp_path), no_dist=True)
    return tmp_path


def test_tensors_are_read_as_torch_reads_them(saved: Path) -> None:
    target = {"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.bfloat16)}
    dcp.load(target, storage_reader=TensorReader(saved), no_dist=True)
    assert torch.equal(target["a"], torch.arange(12.0).view(3, 4))
    assert torch.equal(target["b"], torch.ones(5, dtype=torch.bfloat16))
    ours, theirs = read_description(saved / METADATA_FILE), dcp.FileSystemReader(saved).read_metadata()
    assert ours.state_dict_metadata == theirs.state_dict_metadata


class Call:
    """Unpickled, it calls `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


@pytest.mark.fault("a checkpoint that is a pickle")
@pytest.mark.attack("checkpoint", "a pickle that opens, runs or executes, by pickle protocol", "refused, not called")
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_planted_call_is_not_made(saved: Path, protocol: int) -> None:
    marker = saved / "marker"
    for function, *arguments in (
        (open, str(marker), "w"),
        (os.system, f"touch {marker}"),
        (exec, f"open({str(marker)!r}, 'w')"),
    ):
        (saved / METADATA_FILE).write_bytes(pickle.dumps(Call(function, *arguments), protocol))
        with pytest.raises(CheckpointError, match="which no description of tensors needs"):
            TensorReader(saved).read_metadata()
        assert not marker.exists()


def _changed(description: Any, *path: Any, value: Any) -> None:
    """Set what lies at `path`, of attributes and keys, to `value`."""
    for step in path[:-1]:
        description = description[step] if isinstance(description, dict | list) else getattr(description, step)
    if isinstance(description, dict | list):
        description[path[-1]] = value
    else:
        object.__setattr__(description, path[-1], value)


ODD: list[tuple[tuple[Any, ...], Any]] = [
    (("state_dict_metadata",), None),
    (("state_dict_metadata",), ["a"]),
    (("state_dict_metadata", "a"), "a tensor"),
    (("state_dict_metadata", "a", "size"), None),
    (("state_dict_metadata", "a", "size"), ("3", "4")),
    (("state_dict_metadata", "a", "size"), (-3, 4)),
    (("state_dict_metadata", "a", "properties"), None),
    (("state_dict_metadata", "a", "properties", "dtype"), "float32"),
    (("state_dict_metadata", "a", "chunks"), None),
    (("state_dict_metadata", "a", "chunks", 0, "sizes"), (1 << 60, 4)),
    (("state_dict_metadata", "a", "chunks", 0, "offsets"), (-1, 0)),
    (("state_dict_metadata", "a", "chunks", 0, "offsets"), (0,)),
    (("storage_data",), None),
    (("storage_data", "FIRST"), "a file"),
    (("storage_data", "FIRST", "relative_path"), "../../other/model.distcp"),
    (("storage_data", "FIRST", "relative_path"), "/etc/hostname"),
    (("storage_data", "FIRST", "offset"), -1),
    (("storage_data", "FIRST", "length"), "all"),
    (("storage_meta",), "here"),
]
"""What a description is changed in, and to what."""


@pytest.mark.fault("a checkpoint that is a pickle")
@pytest.mark.attack("checkpoint", "a description whose fields are not what torch writes, or lead outside", "one error")
@pytest.mark.parametrize(("path", "value"), ODD, ids=str)
def test_a_description_of_odd_fields_is_one_error(saved: Path, path: tuple[Any, ...], value: Any) -> None:
    description = dcp.FileSystemReader(saved).read_metadata()
    first = next(iter(description.storage_data))
    _changed(description, *(first if step == "FIRST" else step for step in path), value=value)
    (saved / METADATA_FILE).write_bytes(pickle.dumps(description))
    with pytest.raises(CheckpointError):
        TensorReader(saved).read_metadata()


@pytest.mark.attack("checkpoint", "a pickle's name behind an allowed module", "refused")
def test_a_name_behind_an_allowed_module_is_refused(saved: Path) -> None:
    for module, name in (("torch", "load"), ("torch", "serialization.load"), ("pathlib", "os.system"), ("torch", "os")):
        payload = b"\x80\x04" + _text(module) + _text(name) + b"\x93."
        (saved / METADATA_FILE).write_bytes(payload)
        with pytest.raises(CheckpointError):
            TensorReader(saved).read_metadata()


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"\x8c" + bytes([len(raw)]) + raw


@pytest.mark.attack("checkpoint", "a description of other data than tensors", "refused")
def test_other_data_than_tensors_is_refused(saved: Path) -> None:
    (saved / METADATA_FILE).write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="holds dict"):
        read_description(saved / METADATA_FILE)
    (saved / METADATA_FILE).write_bytes(pickle.dumps(Metadata({"code": BytesStorageMetadata()})))
    with pytest.raises(CheckpointError, match="BytesStorageMetadata"):
        read_description(saved / METADATA_FILE)


@pytest.mark.attack("checkpoint", "noise as a description", "one error")
@given(content=st.binary(max_size=300))
def test_noise_is_one_error(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("noise") / METADATA_FILE
    file.write_bytes(content)
    with pytest.raises(CheckpointError):
        read_description(file)


@pytest.mark.attack("checkpoint", "a description cut at any place", "one error")
def test_a_cut_description_is_one_error(saved: Path) -> None:
    whole = (saved / METADATA_FILE).read_bytes()
    for size in range(0, len(whole), 37):
        (saved / METADATA_FILE).write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            read_description(saved / METADATA_FILE)
