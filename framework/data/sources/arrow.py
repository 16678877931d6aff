"""Faults of files that Arrow reads: parquet, Feather and its own streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from framework.scene.types import SceneError


@contextmanager
def reads(path: Path, remedy: str) -> Iterator[None]:
    """Within it `path` is read. Raises `SceneError` with `remedy` where the file is missing or damaged."""
    try:
        yield
    except FileNotFoundError as error:
        raise SceneError(f"{path}: is missing; {remedy}") from error
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise SceneError(f"{path}: is cut short or damaged ({reason}); {remedy}") from error
