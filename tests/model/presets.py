"""Where the model's presets are, and what they set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = REPOSITORY / "framework" / "model" / "tiny"


def preset(name: str) -> dict[str, Any]:
    """A preset's arguments, without the target; `name` below conf."""
    values: dict[str, Any] = yaml.safe_load((REPOSITORY / "conf" / name).read_text(encoding="utf-8"))
    values.pop("_target_")
    return values
