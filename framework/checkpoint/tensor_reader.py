"""Reads distributed checkpoints without running what a pickle says.

torch.distributed.checkpoint describes its files in `.metadata`, a pickle. Here an unpickler constructs only the types
that such a description needs, so that a file from a stranger can at most be refused.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta, TensorStorageMetadata

from framework.checkpoint.manifest import CheckpointError

METADATA_FILE = ".metadata"
LARGEST = 1 << 30
"""Bytes of the largest description that is read; one of a thousand ranks and a 30 B model has about 200 MB."""

_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "TensorStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch": {"Size"} | {name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "PurePosixPath"},
    "pathlib._local": {"PosixPath", "PurePosixPath"},
    "collections": {"OrderedDict"},
}
"""By module, the names that a description may refer to."""


class TensorReader(FileSystemReader):
    """A reader of tensors below `folder`. Raises `CheckpointError` for a description that holds anything else."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The description of the checkpoint's tensors."""
        metadata = read_description(Path(self.path) / METADATA_FILE)
        if not isinstance(getattr(metadata, "storage_meta", None), StorageMeta):
            raise CheckpointError(f"{self.path}: the description names no storage")
        metadata.storage_meta.load_id = self.load_id  # type: ignore[union-attr]
        return metadata


def read_description(file: Path) -> Metadata:
    """The description in `file`, of tensors alone.

    Raises `CheckpointError` for a file that is none, that refers to any other type, or that describes other data than
    tensors.
    """
    try:
        if file.stat().st_size > LARGEST:
            raise CheckpointError(f"{file}: {file.stat().st_size:,} bytes are no description of tensors")
        description = _Restricted(io.BytesIO(file.read_bytes())).load()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its opcodes run into
        raise CheckpointError(f"{file}: not a description of tensors: {type(error).__name__}: {error}") from error
    if not isinstance(description, Metadata):
        raise CheckpointError(f"{file}: holds {type(description).__name__}, not a description of tensors")
    try:
        _check(description)
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file}: not a description of tensors: {error}") from error
    return description


def _check(description: Metadata) -> None:
    """Raises `ValueError`, `TypeError` or `AttributeError` for a description whose fields are not what torch writes:
    the unpickler sets them to whatever the file says.
    """
    for name, entry in description.state_dict_metadata.items():
        if not isinstance(name, str) or not isinstance(entry, TensorStorageMetadata):
            raise TypeError(f"{name} is {type(entry).__name__}, and checkpoints hold tensors alone")
        if not isinstance(entry.properties.dtype, torch.dtype) or not _is_shape(entry.size):
            raise TypeError(f"{name}: {entry.size!r:.100} of {entry.properties.dtype!r:.100} is no tensor")
        for chunk in entry.chunks:
            ends = [start + length for start, length in zip(chunk.offsets, chunk.sizes, strict=True)]
            if not (_is_shape(chunk.offsets) and _is_shape(chunk.sizes)) or len(ends) != len(entry.size):
                raise ValueError(f"{name}: {chunk!r:.200} is no part of it")
            if any(end > length for end, length in zip(ends, entry.size, strict=True)):
                raise ValueError(f"{name}: {chunk!r:.200} lies outside of it")
    for index, stored in description.storage_data.items():
        where = stored.relative_path
        if not isinstance(index, MetadataIndex) or not isinstance(where, str) or Path(where).name != where:
            raise ValueError(f"{where!r:.200} is no file of the checkpoint")
        if not _is_shape((stored.offset, stored.length)):
            raise ValueError(f"{where}: {stored.offset!r:.100}, {stored.length!r:.100} are no bytes of it")


def _is_shape(numbers: Iterable[object]) -> bool:
    return all(type(each) is int and each >= 0 for each in numbers)


class _Restricted(pickle.Unpickler):
    """Constructs the types of `_ALLOWED`, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise CheckpointError(f"{METADATA_FILE} refers to {module}.{name}, which no description of tensors needs")
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        raise CheckpointError(f"{METADATA_FILE} refers to an object outside")
