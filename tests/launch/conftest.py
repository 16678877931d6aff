"""A checkout to launch from, and stand-ins for a cluster's commands."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from framework.recipe import signature
from tools.slurm import LocalSlurm, local_slurm, missing_programs

REPOSITORY = Path(__file__).resolve().parents[2]
NEEDS_SLURM = pytest.mark.skipif(bool(missing_programs()), reason=f"not installed: {', '.join(missing_programs())}")
FILES = {
    "conf/config.yaml": """\
defaults:
  - _self_
  - launch: local
  - recipe: ???
run:
  name: ???
  seed: 0
  folder: ${paths.runs}/${run.name}
paths:
  runs: runs
parallel:
  accelerator: cpu
plugins: [toys]
""",
    "recipes/toy.yaml": """\
# @package _global_
task:
  _target_: toys.toy.Toy
  seed: ${run.seed}
  colour: ${oc.env:TOY_COLOUR,red}
launch:
  nodes: 2
  devices: 2
  minutes: 60
  limits:
    free_gib: 0
""",
    "plugins/toys/__init__.py": "",
    "plugins/toys/toy.py": """\
from framework.recipe.component import component

@component
class Toy:
    def __init__(
        self, seed: int, colour: str, stages: object = None, curriculum: object = None, evals: object = None
    ) -> None: ...
    def run(self, run: object) -> None: ...
""",
    "framework/__init__.py": "",
}
"""A checkout in which composing takes no time."""
SEARCHED = {
    "recipes/trial.yaml": """\
# @package _global_
search_metric: held_out/drive/ade
task:
  _target_: toys.trial.Trial
  x: 0.0
  evals: {held_out: 1}
launch:
  nodes: 1
  devices: 1
  minutes: 10
  requeues: 0
  limits:
    free_gib: 0
""",
    "plugins/toys/trial.py": """\
from collections.abc import Mapping

from framework.recipe.component import component
from framework.run.trial import report_metrics

@component
class Trial:
    def __init__(self, x: float, evals: Mapping[str, int]) -> None:
        self.x = x

    def run(self, run: object) -> None:
        report_metrics({"held_out/drive/ade": float("nan") if self.x > 1.4 else (self.x - 1) ** 2}, 1)
""",
    "conf/config.yaml": FILES["conf/config.yaml"].replace("accelerator: cpu", "accelerator: cpu\n  devices: auto")
    + "search_metric: null\nsearch_direction: minimize\n",
}
"""What a checkout has in addition for a search: a task that reports a metric at once."""
COMMANDS = {
    "sbatch": """
case " $* " in
*' --test-only '*) cat > /dev/null; [ -e "$STATE/refuse" ] && { cat "$STATE/refuse" >&2; exit 1; }; exit 0 ;;
esac
cat > "$STATE/script"; echo "$@" >> "$STATE/sbatch"; echo $((40 + $(wc -l < "$STATE/sbatch")))
""",
    "squeue": """
case " $* " in *=%D*) cat "$STATE/nodes" 2>/dev/null ;; *) cat "$STATE/queue" 2>/dev/null ;; esac
exit 0
""",
    "sinfo": """echo 'local up'; echo 'closed down'""",
    "scancel": """echo "$@" >> "$STATE/scancel" """,
    "kubectl": """
echo "$@" >> "$STATE/kubectl"
case "$1" in
create) cat > "$STATE/manifest" ;;
get) case "$2" in localqueues*) echo 'team-localqueue other' ;; *) cat "$STATE/job" 2>/dev/null; exit 0 ;; esac ;;
esac
""",
}


@dataclass(frozen=True)
class Cluster:
    """Stand-ins for Slurm's commands and kubectl. Their calls and their answers lie in `state`."""

    state: Path

    def queue(self, text: str) -> None:
        """Set what `squeue` prints."""
        (self.state / "queue").write_text(text)

    def read(self, name: str) -> str:
        """The recorded calls of a command; empty where it was not called."""
        file = self.state / name
        return file.read_text() if file.exists() else ""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    programs, state = tmp_path / "bin", tmp_path / "state"
    programs.mkdir()
    state.mkdir()
    for name, body in COMMANDS.items():
        program = programs / name
        program.write_text(f"#!/bin/bash\n{body}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setenv("STATE", str(state))
    monkeypatch.setenv("SBATCH_PARTITION", "local")
    return Cluster(state)


@pytest.fixture(scope="module")
def real_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSlurm]:
    """A Slurm of two nodes, whose commands are those of this process; mark with `NEEDS_SLURM`."""
    with local_slurm(tmp_path_factory.mktemp("slurm")) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(scope="session")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of one commit, with this repository's launch presets."""
    folder = tmp_path_factory.mktemp("checkout") / "checkout"
    shutil.copytree(REPOSITORY / "conf" / "launch", folder / "conf" / "launch")
    lay(folder, FILES)
    git(folder, "init", "--quiet", "--initial-branch=main")
    commit(folder, "first")
    return folder


@pytest.fixture
def checkout(committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone of the checkout for one test, whose plugin is importable for this test alone."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    signature.find_spec.cache_clear()
    signature.read_module.cache_clear()
    git(tmp_path, "clone", "--quiet", str(committed), "checkout")
    return tmp_path / "checkout"


def lay(folder: Path, files: Mapping[str, str]) -> None:
    """Write `files`, by their names in `folder`."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def git(folder: Path, *arguments: str) -> str:
    """Git's output in `folder`."""
    return subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True).stdout


def commit(folder: Path, message: str) -> str:
    """Commit everything in `folder` and return the SHA."""
    git(folder, "add", "--all")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    git(folder, *who, "commit", "--quiet", "--allow-empty", f"--message={message}")
    return git(folder, "rev-parse", "HEAD").strip()
