"""Reinforcement learning through a vLLM server and by the embedded engine: rewards of equal steps, in pairs.

    VLLM_PYTHON=.../bin/python python -m tools.bench.vllm_reward outputs/runs/demo --seeds 0 1 --steps 20

All begin with the newest weights of a supervised run. Runs of a seed have the same prompts. Their answers differ,
because the engines draw by generators of their own. What is compared is the mean reward of a step.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from framework.evaluation.intervals import bootstrap, shifted
from framework.launch.host import free_port
from framework.run.layout import METRICS_FILE
from framework.tracking.metrics_file import read_all_series
from tools.bench.machine import write_result
from tools.bench.vllm_parity import GATE

RL = "curriculum.stages.rl"
SURROUNDINGS = "{VLLM_CPU_KVCACHE_SPACE:'1',VLLM_CPU_OMP_THREADS_BIND:nobind,OMP_NUM_THREADS:'1'}"
TOLD = {"reward": "reward/mean", "gap": "policy/engine_error_max"}


def common_words(folder: Path, steps: int, weights: Path | None = None) -> list[str]:
    """The words of a run of `steps` steps, each of 8 prompts and 4 answers to each, from the weights of another run, or
    random ones.
    """
    return [
        "recipe=rl_dapo", "scale=tiny", f"curriculum.max_steps_per_stage={steps}", "sources.world_hard.scenes=24",
        "evals=[]", f"init_from={weights or 'null'}", "stage.global_batch=8", f"{RL}.group_size=4", "stage/filter=none",
        "stage/prompt_weights=none", f"{RL}.max_logprob_gap={GATE}",
        f"paths.runs={folder}/runs", f"paths.cache={folder}/cache",
    ]  # fmt: skip


def server_words(path: str, port: int) -> list[str]:
    """The words of a server on this machine's CPU, whose engine is at `path` in the recipe."""
    return [
        f"{path}.url=http://127.0.0.1:{port}", f"{path}.patience_s=3000", f"{path}.dtype=float32",
        f"{path}.max_logprob_gap={GATE}", f"+{path}.process.options.enforce-eager=true",
        # vLLM 0.32 cannot rewind a seeded generator on a CPU, which it does where a prompt is read in parts.
        f"+{path}.process.options.no-enable-chunked-prefill=true",
        f"+{path}.process.options.max-num-batched-tokens=16384", f"{path}.process.environment={SURROUNDINGS}",
    ]  # fmt: skip


def metrics_of(run: Path) -> dict[str, dict[int, float]]:
    """The metrics of a run: values by step, by name."""
    return {name: dict(series) for name, series in read_all_series(run / METRICS_FILE, lambda _: True).items()}


def train(engine: str, seed: int, steps: int, weights: Path, python: str, folder: Path) -> dict[str, dict[int, float]]:
    """What `TOLD` names of each step of a run. Raises `CalledProcessError` where it fails."""
    name = f"{engine}-{seed}"
    words = [*common_words(folder, steps, weights), f"stage/sampler={engine}", f"run.seed={seed}", f"run.name={name}"]
    if engine == "vllm":
        words += server_words(f"{RL}.sampler", free_port())
    environment = os.environ | {"VLLM_PYTHON": python}
    subprocess.run([sys.executable, "-m", "framework", *words], env=environment, check=True)
    metrics = metrics_of(folder / "runs" / name)
    return {short: metrics.get(long, {}) for short, long in TOLD.items()}


def compare(runs: Mapping[int, Mapping[str, Mapping[str, Mapping[int, float]]]]) -> dict[str, Any]:
    """The mean rewards of both engines, and the mean difference over pairs of equal seed and step with its interval.

    Args:
        runs: By seed and engine what `train` told.
    """
    engines = ("embedded", "vllm")
    rewards = [
        {f"{seed}/{step}": value for seed, both in runs.items() for step, value in both[engine]["reward"].items()}
        for engine in engines
    ]
    embedded, vllm = rewards
    if embedded.keys() != vllm.keys():
        raise ValueError("the engines' runs have other steps; run them again")
    differences = {pair: vllm[pair] - embedded[pair] for pair in embedded}
    mean = sum(differences.values()) / len(differences)
    interval = shifted(bootstrap(differences, dict.fromkeys(differences, 1.0)), mean)
    own = {engine: sum(each.values()) / len(each) for engine, each in zip(engines, rewards, strict=True)}
    return {
        "steps": len(differences), "reward": own, "difference": mean, "interval_95": interval,
        "largest_gap_nats": max(gap for both in runs.values() for gap in both["vllm"]["gap"].values()),
        "by_step": {engine: [round(value, 5) for value in each.values()]
                    for engine, each in zip(engines, rewards, strict=True)},
    }  # fmt: skip


def measure(weights: Path, seeds: Sequence[int], steps: int, python: str) -> dict[str, Any]:
    """Train by both engines with each seed, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        return compare({
            seed: {engine: train(engine, seed, steps, weights, python, Path(folder)) for engine in ("embedded", "vllm")}
            for seed in seeds
        })  # fmt: skip


def main() -> None:
    """Measure, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="a supervised run's folder")
    parser.add_argument("--python", default=os.environ.get("VLLM_PYTHON"), help="of an environment with vLLM")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("tools/bench/results/vllm_reward.json"))
    given = parser.parse_args()
    if given.python is None:
        parser.error("--python, or VLLM_PYTHON: name the python of an environment with vLLM and plugins/vllm_plugin")
    settings = {"vllm": "0.32 on a CPU", "dtype": "float32", "seeds": given.seeds, "steps": given.steps}
    settings["weights"] = given.weights.name
    write_result(
        given.out, "vllm_reward", settings, measure(given.weights.resolve(), given.seeds, given.steps, given.python)
    )


if __name__ == "__main__":
    main()
