"""The lock file: each package by version and hash, from no particular place."""

from __future__ import annotations

import re
import tomllib

from tests.conftest import REPOSITORY

LOCK = (REPOSITORY / "requirements.lock").read_text()
ENTRY = re.compile(r"([a-z0-9._-]+)==(\S+)(?: ; [^\\\n]+)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)")


def test_every_line_is_a_pinned_package_with_its_hashes() -> None:
    assert "".join(entry.group(0) for entry in ENTRY.finditer(LOCK)) == LOCK
    assert len(ENTRY.findall(LOCK)) > 100


def test_it_names_no_address() -> None:
    assert "://" not in LOCK
    assert "index-url" not in LOCK


def test_what_the_framework_needs_is_locked() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    needed = [
        *project["dependencies"],
        *project["optional-dependencies"]["dev"],
        *project["optional-dependencies"]["docs"],
    ]
    names = {re.split(r"[\[<>=!~; ]", each)[0].lower().replace("_", "-") for each in needed}
    assert names - {name for name, _, _ in ENTRY.findall(LOCK)} - {"framework"} == set()


def test_setup_checks_the_hashes() -> None:
    assert "--require-hashes -r requirements.lock" in (REPOSITORY / "Makefile").read_text()
