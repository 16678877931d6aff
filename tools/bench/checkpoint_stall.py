"""What a save costs training: extra wall time of the steps from a save to long after it, over those of quiet steps.

    python -m tools.bench.checkpoint_stall [--megabytes 512] [--ranks 2] [--repeats 5] [--out tools/bench/results/...]

The same model, optimizer and ranks (gloo, data-parallel) under Lightning, in one run, in turns: no save at all (what
noise makes of the same sum), this framework's asynchronous writer, torch.distributed.checkpoint's synchronous save,
and Lightning's own `save_checkpoint`. Each turn is `quiet` steps, a save, and `after` steps, within which an
asynchronous save must end; its stall is the time of the `after` steps less that of as many median quiet ones. Ours
hashes, commits, verifies and deletes the checkpoint before it in that time, which the others do not.

An accelerator's host issues work and waits. These ranks have none, so that arithmetic on all of the state would
compete with the writers for cores and memory, as it does in no job with accelerators: each step therefore waits
`device_s`, and trains one small layer; the other layers, their optimizer state and so what is saved stay as they were
drawn. What is measured is how long a save holds up the thread that trains.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.utils.data import DataLoader

from framework.checkpoint.retention import KeepLast
from framework.checkpoint.save_modes import Asynchronous
from framework.checkpoint.store import CheckpointStore
from tools.bench.machine import write_result

LAYERS = 10
BYTES_PER_PARAMETER = 12
"""Weight and two moments, float32."""
TRAINED = 32
"""Width of the layer that is trained."""


class Layers(LightningModule):
    """As many parameters as make `megabytes` of state, of which a small layer trains while a device is waited for."""

    def __init__(self, megabytes: int, device_s: float) -> None:
        super().__init__()
        self.automatic_optimization = False  # as in every stage: else the optimizer's step holds the forward pass
        width = round((megabytes * 1e6 / BYTES_PER_PARAMETER / LAYERS) ** 0.5)
        frozen = [nn.Linear(width, width).requires_grad_(False) for _ in range(LAYERS)]
        self.net = nn.Sequential(*frozen, nn.Linear(TRAINED, TRAINED))
        self.device_s = device_s

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """A regression on noise, and the wait for an accelerator."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        time.sleep(self.device_s)
        self.manual_backward(self.net[-1](torch.randn(1, TRAINED)).square().mean())
        optimizer.step()
        optimizer.zero_grad()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, whose state is twice the weights, those of the layers that rest included."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-4)
        for parameter in self.net[:-1].parameters():
            moments = {name: torch.rand_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.tensor(1.0), **moments}
        return optimizer

    def train_dataloader(self) -> DataLoader[int]:
        """As many steps as anybody wants."""
        return DataLoader(range(10**6))  # type: ignore[arg-type]  # a range is a dataset


class Turns(Callback):
    """Does `saves` in turns and times the steps around them."""

    def __init__(self, saves: dict[str, Callable[[int], None]], store: CheckpointStore, options: Any) -> None:
        self.saves, self.store, self.options = list(saves.items()), store, options
        self.stalls: dict[str, list[float]] = {name: [] for name in saves}
        self.flights: list[float] = []
        self.quiet_s: list[float] = []
        self._times: list[float] = []
        self._mark = 0.0
        self._saved_at = 0.0

    @property
    def steps(self) -> int:
        """Of all turns, and of the one that warms everything up."""
        turn: int = self.options.quiet + self.options.after
        return turn * len(self.saves) * (self.options.repeats + 1)

    def on_train_batch_end(self, *_: Any) -> None:
        """Time the step; save when it is time."""
        now = time.perf_counter()
        self._times.append(now - self._mark)
        self._mark = now
        self.store.poll()
        turn, done = divmod(self.options.steps_done, self.options.quiet + self.options.after)
        name, save = self.saves[turn % len(self.saves)]
        self.options.steps_done += 1
        if done == self.options.quiet - 1:
            self._saved_at = time.perf_counter()
            save(turn)
        if done == self.options.quiet + self.options.after - 1:
            if turn < len(self.saves):
                self.store.finish()  # the first save starts the daemons
            elif self.store.save_mode._pending is not None:  # type: ignore[attr-defined]
                raise RuntimeError("the save did not end within the turn: give more --after")
            quiet = statistics.median(self._times[2 : self.options.quiet])  # the first are still the last turn's
            if turn >= len(self.saves):
                self.quiet_s.append(quiet)
                self.stalls[name].append(sum(self._times[self.options.quiet :]) - quiet * self.options.after)
            self._times = []
            dist.barrier()
            self._mark = time.perf_counter()


def rank(options: argparse.Namespace) -> None:
    """One rank; the first writes the figures."""
    torch.set_num_threads(1)
    module = Layers(options.megabytes, options.device_s)
    folder = Path(options.folder)
    store = CheckpointStore(folder / "ours", KeepLast(1), Asynchronous("process"))
    trainer: Trainer

    def ours(turn: int) -> None:
        store.save(turn, 1, module.net, trainer.optimizers[0], {}, {})

    def synchronous(turn: int) -> None:
        model, optimizer = get_state_dict(module.net, trainer.optimizers[0])
        dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder / "dcp" / str(turn))

    def lightning(turn: int) -> None:
        trainer.save_checkpoint(folder / "lightning" / f"{turn}.ckpt")

    options.steps_done = 0
    turns = Turns(
        {"nothing": lambda _: None, "ours": ours, "dcp synchronous": synchronous, "lightning": lightning},
        store,
        options,
    )
    trainer = Trainer(
        max_steps=turns.steps,
        accelerator="cpu",
        devices=int(os.environ["WORLD_SIZE"]),
        strategy=DDPStrategy(process_group_backend="gloo"),
        plugins=[TorchElasticEnvironment()],
        callbacks=[turns],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module)
    store.close()
    if int(os.environ["RANK"]) == 0:
        median = {name: statistics.median(stalls) for name, stalls in turns.stalls.items()}
        figures = {
            "quiet_step_s": statistics.median(turns.quiet_s),
            "stall_s": median,
            "stall_s_of_each_repeat": turns.stalls,
            "ours_over_dcp_synchronous": median["ours"] / median["dcp synchronous"],
            "ours_over_lightning": median["ours"] / median["lightning"],
            "bar": 0.05,
        }
        del options.steps_done, options.folder
        write_result(options.out, "checkpoint_stall", vars(options), figures)


def main() -> None:
    """Start the ranks, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--device-s", type=float, default=0.4, help="what a step waits for its accelerator")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quiet", type=int, default=10)
    parser.add_argument("--after", type=int, default=24)
    parser.add_argument("--folder", default="")
    parser.add_argument("--out", type=Path, default=Path("tools/bench/results/checkpoint_stall.json"))
    options = parser.parse_args()
    if "RANK" in os.environ:
        rank(options)
        return
    folder = tempfile.mkdtemp()
    try:
        start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(options.ranks)]
        command = [*start, "-m", "tools.bench.checkpoint_stall", *sys.argv[1:], "--folder", folder]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
