"""What a benchmark's figures were measured on, and where they are kept."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "lightning", "transformers", "mosaicml-streaming", "numpy")


def write_result(path: Path, name: str, settings: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
    """Write and print a benchmark's figures with machine, versions, commit and settings."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    result = {
        "benchmark": name,
        "figures": figures,
        "settings": {key: str(value) for key, value in settings.items()},
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "commit": commit,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def processor() -> str:
    """The processor's name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()
