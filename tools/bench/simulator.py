"""Measure the simulator: scene-steps per second, and the distance of its circles from the closed form.

    python -m tools.bench.simulator [--scenes 1024] [--repeats 5] [--out tools/bench/results/simulator.json]

A scene-step advances one scene by a quarter of a second, with all agents and measures (collisions, road, times to
collision, stop lines). A planner that keeps speed and curvature replans at every step, as in closed loop. The CPU
figures use two cores and two threads of any machine; a GPU, where there is one, drives the same batches. Recordings are
driven, too, where RECORDINGS (default: the folder recordings) holds some.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from framework.data.sources.argoverse import Argoverse
from framework.data.sources.forecasting import Forecasting
from framework.data.sources.recordings import find_recordings
from framework.scene.types import Scene, SceneError
from framework.scene.world.generate import generate_scene
from framework.scene.world.scenarios import KINDS
from framework.simulation.car_following import CarFollowing
from framework.simulation.dynamics import Unicycle
from framework.simulation.episode import drive
from framework.simulation.scenes import SceneBatch, batch_scenes
from framework.simulation.simulator import Moment, Simulator
from framework.simulation.traffic import Replay, Traffic
from tools.bench.machine import write_result

CORES = 2
SEEDS = 16
"""Distinct scenes of each kind; a batch repeats them."""
TRAFFIC: dict[str, Traffic] = {"replay": Replay(), "car following": CarFollowing()}


def main() -> None:
    """Run the measurements and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=1024, help="scenes per batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("tools/bench/results/simulator.json"))
    arguments = parser.parse_args()
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:CORES]))
    torch.set_num_threads(CORES)
    sources = {"built-in world": [generate_scene(seed, kind, rig=None) for seed in range(SEEDS) for kind in KINDS]}
    if logged := recorded(Path(os.environ.get("RECORDINGS", "recordings"))):
        sources["recordings"] = logged
    devices = {"2 cores": "cpu"} | ({torch.cuda.get_device_name(): "cuda"} if torch.cuda.is_available() else {})
    speeds = {
        f"{source}, {traffic}, {name}": scene_steps(scenes, TRAFFIC[traffic], device, arguments)
        for source, scenes in sources.items()
        for traffic in TRAFFIC
        for name, device in devices.items()
    }
    start = time.perf_counter()
    batch_scenes(sources["built-in world"])
    preparing = (time.perf_counter() - start) / len(sources["built-in world"])
    figures = {
        "scene-steps per second": speeds,
        "milliseconds to make a scene a tensor": round(1e3 * preparing, 3),
        "metres off a circle of 20 m after 5 s at 8 m/s": {
            str(dtype): circle_error(dtype) for dtype in (torch.float32, torch.float64)
        },
    }
    write_result(arguments.out, "simulator", vars(arguments) | {"cores": CORES}, figures)


def recorded(folder: Path) -> list[Scene]:
    """Every fourth moment of the recordings below `folder`, of those with history and future."""
    try:
        found = find_recordings(folder, {"argoverse": Argoverse(), "forecasting": Forecasting()})
    except SceneError:
        return []
    scenes = [scene for item in found.items[::4] for scene in found.scenes(item)]
    return [scene for scene in scenes if scene.history is not None and scene.future is not None]


def keep_going(moments: Sequence[Moment], scenes: SceneBatch) -> Tensor:
    """Controls that keep speed and curvature."""
    now = moments[-1]
    return torch.stack([torch.zeros_like(now.curvature), now.curvature], dim=-1)[:, None]


def scene_steps(scenes: list[Scene], traffic: Traffic, device: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Scene-steps per second over a batch of `scenes`: median, lowest and highest of the repeats."""
    batch = batch_scenes(scenes).take([row % len(scenes) for row in range(arguments.scenes)]).to(device)
    simulator = Simulator(traffic)
    rates = []
    for _ in range(arguments.repeats + 1):
        start = time.perf_counter()
        drive(simulator, batch, keep_going, batch.steps)
        if device == "cuda":
            torch.cuda.synchronize()
        rates.append(len(batch) * batch.steps / (time.perf_counter() - start))
    rates = rates[1:]  # the first warms up
    return {"median": round(statistics.median(rates)), "least": round(min(rates)), "most": round(max(rates))}


def circle_error(dtype: torch.dtype, radius: float = 20.0, speed: float = 8.0, steps: int = 20) -> float:
    """The largest distance (m) of a driven circle from the closed form."""
    state, curvature = torch.tensor([[0.0, 0.0, 0.0, speed]], dtype=dtype), torch.zeros(1, dtype=dtype)
    controls, worst = torch.tensor([[0.0, 1 / radius]], dtype=dtype), 0.0
    for step in range(1, steps + 1):
        state, curvature = Unicycle()(state, curvature, controls, 0.25)
        turned = speed * step * 0.25 / radius
        expected = radius * math.sin(turned), radius * (1 - math.cos(turned))
        worst = max(worst, math.dist(state[0, :2].tolist(), expected))
    return worst


if __name__ == "__main__":
    main()
