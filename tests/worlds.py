"""The built-in world's scenes, which tests share: to generate them takes each run seconds."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = "FRAMEWORK_TESTS_WORLDS"
"""The environment variable that names the folder, which `conftest` sets and every process inherits."""


def worlds() -> Path:
    """The value of `paths.cache` for all tests. The names of its folders tell what scenes they hold."""
    return Path(os.environ[FOLDER])
