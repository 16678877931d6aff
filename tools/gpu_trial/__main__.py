"""Every open figure of one GPU, in one command of at most six minutes.

    python -m tools.gpu_trial [--device cpu] [--out DIR] [--seconds 360] [--only STEP ...]

The steps (`tools.gpu_trial.steps`) run one after another, the worthiest first, each in a process with its own limit of
time. `trial.json` in DIR has what is known after each of them, `trial.md` is its page, `trial.log` what the processes
said. With `--device cpu` every branch is taken at tiny sizes, and no figure means anything.

It needs this repository, torch 2.11 or later, transformers, lightning and what `tools/gpu_trial/wheels.txt` names, and
accelerate for transformers' Trainer; no network. What is not installed is left out and told.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from framework.run.files import write_text
from tools.gpu_trial.page import page
from tools.gpu_trial.runner import READY, Task, run_all
from tools.gpu_trial.steps import STEPS

REPOSITORY = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the trial, or one step of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu_trial"))
    parser.add_argument("--seconds", type=float, help="for all steps; default: 360, and an hour for a dry run")
    parser.add_argument("--only", nargs="+", default=[], metavar="STEP", help="these steps alone")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.step:
        run_step(options)
    else:
        raise SystemExit(trial(options))


def run_step(options: argparse.Namespace) -> None:
    """Import what the step needs, wait for the start on standard input, run it, and write its figures."""
    from tools.gpu_trial.setting import Setting

    measure = STEPS[options.step].load()
    setting = Setting(options.device, options.folder, options.result)
    setting.quiet()
    options.result.with_suffix(READY).touch()
    if not sys.stdin.readline():
        return  # the trial has ended
    setting.keep(measure(setting))


def trial(options: argparse.Namespace) -> int:
    """Run the steps. Returns the exit status: 0 where all were done."""
    if unknown := [name for name in options.only if name not in STEPS]:
        print(f"tools.gpu_trial: --only {' '.join(unknown)}: the steps are {', '.join(STEPS)}", file=sys.stderr)
        return 2
    if options.device == "cuda" and not _has_gpu():
        print("tools.gpu_trial: torch finds no CUDA device; give --device cpu for a dry run", file=sys.stderr)
        return 2
    dry = options.device == "cpu"
    patience = 10 if dry else 1  # a dry run shares its machine
    tasks = [Task(name, patience * step.limit_s) for name, step in STEPS.items() if name in (options.only or STEPS)]
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "trial.json"
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    facts = {"device": options.device, "commit": commit.stdout.strip() or "unknown"}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        command = [sys.executable, "-m", "tools.gpu_trial", "--device", options.device, "--folder", scratch]
        budget = options.seconds or (3600.0 if dry else 360.0)
        records = run_all(tasks, command, budget, folder, facts, path)
        logs = [f"== {log.stem}\n{log.read_text(errors='replace')}" for log in sorted(folder.glob("*.log"))]
        write_text(options.out / "trial.log", "\n".join(logs), durable=False)
        snapshot = folder / "memory_snapshot.pickle"
        if snapshot.exists():
            (options.out / snapshot.name).write_bytes(snapshot.read_bytes())
    write_text(options.out / "trial.md", page({**facts, "steps": records}), durable=False)
    return 0 if all(record["status"] == "done" for record in records) else 1


def _has_gpu() -> bool:
    """Whether torch finds a GPU, asked in a process of its own, so that this one holds none of the device's memory."""
    asked = "import torch; raise SystemExit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", asked], env=os.environ, check=False).returncode == 0


if __name__ == "__main__":
    main()
