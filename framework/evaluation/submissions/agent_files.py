"""Agents as files: a benchmark's environment has packages of its own, so that the model stays behind `serve`."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from framework.recipe.component import component
from framework.run.files import write_text
from framework.scene.types import FloatArray

AGENTS = "framework.evaluation.submissions.agents"
CLIENT = "drive_client"
"""The module by which every agent asks the server."""


def write_agent(name: str, folder: Path) -> list[Path]:
    """Write the agent `name` and the client to `folder`, as files that import nothing of ours; returns them."""
    written = []
    for module in (name, CLIENT):
        text = (files(AGENTS) / f"{module}.py").read_text(encoding="utf-8").replace(f"{AGENTS}.", "")
        write_text(folder / f"{module}.py", text)
        written.append(folder / f"{module}.py")
    return written


def check_agent(name: str, folder: Path) -> str:
    """What a written agent imports. Raises `ValueError` where it imports something of ours."""
    imported = set[str]()
    for module in (name, CLIENT):
        for node in ast.walk(ast.parse((folder / f"{module}.py").read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            imported |= {str(each).split(".")[0] for each in names}
    if "framework" in imported:
        raise ValueError(f"{folder / name}.py: imports this framework, which the benchmark lacks; write it again")
    return f"{name}, which imports {', '.join(sorted(imported - {'__future__', CLIENT}))}"


@component
class Bench2DriveAgent:
    """An agent of Bench2Drive as `bench2drive_agent.py`, which CARLA's leaderboard runs against `serve`."""

    needs_plans = False

    def write(self, plans: Mapping[str, FloatArray], folder: Path) -> list[Path]:
        """See `Submission`."""
        return write_agent("bench2drive_agent", folder)

    def check(self, plans: Mapping[str, FloatArray], folder: Path) -> str:
        """See `Submission`."""
        return check_agent("bench2drive_agent", folder)
