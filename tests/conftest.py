"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import settings

from framework.run.logs import OWN_LOGGERS
from tests.worlds import FOLDER, worlds

os.environ.setdefault("OMP_NUM_THREADS", "1")  # test workers share the cores

settings.register_profile("shared machine", deadline=None)
settings.register_profile("campaign", deadline=None, max_examples=2_000)
settings.register_profile("wide", deadline=None, max_examples=4_000)
settings.register_profile("large", deadline=None, max_examples=10_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "shared machine"))

LIMIT_S = 240
"""What a test may take that says nothing, see `timeout` in pyproject.toml."""
REPOSITORY = Path(__file__).resolve().parent.parent
RECORDINGS = Path(os.environ.get("RECORDINGS", REPOSITORY / "recordings"))
"""The one setting for data that the repository does not hold; published schemas lie in `schemas` next to it."""
HOW_TO_LAY_THEM = "put kitti_*/, nuscenes_*/ and argoverse2_*/ there, or set RECORDINGS to the folder that holds them"


@pytest.fixture(autouse=True)
def _log_levels() -> Iterator[None]:
    """Levels of loggers end with the test that sets them, as one does that calls a command in its own process."""
    loggers = [logging.getLogger(name) for name in OWN_LOGGERS]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The folder of real recordings."""
    if not RECORDINGS.is_dir():
        pytest.skip(f"no recordings at {RECORDINGS}: {HOW_TO_LAY_THEM}")
    return RECORDINGS


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Mark cases before a suite is chosen by marks; order what was chosen."""
    _mark_further_cases_slow(items)
    yield
    _put_long_files_first(items)


def _mark_further_cases_slow(items: list[pytest.Item]) -> None:
    seen = Counter[str]()
    for item in items:
        name = item.nodeid.partition("[")[0]
        mark = item.get_closest_marker("fast_cases")
        if mark and seen[name] >= mark.args[0]:
            item.add_marker("slow")
        seen[name] += 1


def _put_long_files_first(items: list[pytest.Item]) -> None:
    """Files that may take longest begin first: by a test's limit, and a second for each. So workers end together."""
    seconds = Counter(item.path for item in items)
    for path, tests in groupby(items, lambda item: item.path):
        marks = [test.get_closest_marker("timeout") for test in tests]
        seconds[path] += max(mark.args[0] if mark else LIMIT_S for mark in marks)
    items.sort(key=lambda item: -seconds[item.path])


def pytest_collection_finish() -> None:
    """Modules stay for good: neither this process nor its forks need look through them for garbage again."""
    gc.collect()
    gc.freeze()


def pytest_configure() -> None:
    """Make the folder of `worlds`, in the process that starts the workers."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        os.environ[FOLDER] = tempfile.mkdtemp(prefix="worlds-")


def pytest_unconfigure() -> None:
    """Bindings tell of all that is not freed in the end."""
    gc.unfreeze()
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(worlds(), ignore_errors=True)
