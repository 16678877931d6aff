"""Reads distributed checkpoints without running what a pickle says.

torch.distributed.checkpoint describes its files in `.metadata`, a pickle. Here an unpickler constructs only the types
that such a description needs, so that a file from a stranger can at most be refused.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

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
        if getattr(metadata, "storage_meta", None) is None:
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
    for name, entry in description.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise CheckpointError(f"{file}: {name} is {type(entry).__name__}, and checkpoints hold tensors alone")
    return description


class _Restricted(pickle.Unpickler):
    """Constructs the types of `_ALLOWED`, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise CheckpointError(f"{METADATA_FILE} refers to {module}.{name}, which no description of tensors needs")
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        raise CheckpointError(f"{METADATA_FILE} refers to an object outside")
