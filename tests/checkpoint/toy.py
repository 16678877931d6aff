"""A model small enough to save in a blink, and writers that misbehave."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from framework.checkpoint.checkpoint_writer import CheckpointWriter
from framework.checkpoint.save import SaveRequest

PATIENCE_S = 120.0


def make(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model with a buffer that changes in every forward pass, and its optimizer."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    groups = [{"params": model[0].parameters(), "lr": 1e-2}, {"params": model[3].parameters(), "lr": 1e-3}]
    groups.append({"params": model[1].parameters(), "lr": 1e-3})
    return model, torch.optim.AdamW(groups)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 1) -> list[float]:
    """Losses of `steps` steps."""
    losses = []
    for _ in range(steps):
        loss = model(torch.randn(5, 3)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies of all tensors, optimizer state included."""
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"{index}/{key}": value.clone() for key, value in state.items()}
    return tensors


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def wait_for(path: Path) -> None:
    """Return when `path` exists."""
    limit = time.monotonic() + PATIENCE_S
    while not path.exists():
        if time.monotonic() > limit:
            raise TimeoutError(f"{path} did not come")
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs, and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class PausingWriter(CheckpointWriter):
    """Pauses in `phase` of the save of `step`, as `signals`/reached says, until `signals`/go exists."""

    def __init__(self, signals: str, phase: str, step: int) -> None:
        super().__init__()
        self.signals, self.phase, self.step = Path(signals), phase, step

    def write(self, request: SaveRequest) -> bytes:
        """Pauses after the shard is written, before anyone knows."""
        receipt = super().write(request)
        self._pause("upload", request)
        return receipt

    def commit(self, request: SaveRequest, receipts: list[bytes]) -> None:  # type: ignore[override]
        """Pauses with everything there but COMMIT."""
        self._pause("commit", request)
        super().commit(request, receipts)

    def superseded(self, request: SaveRequest) -> list[Path]:
        """Pauses with COMMIT there."""
        self._pause("retire", request)
        return super().superseded(request)

    def _pause(self, phase: str, request: SaveRequest) -> None:
        if (phase, request.step) == (self.phase, self.step) and not (self.signals / "go").exists():
            (self.signals / "reached").touch()
            wait_for(self.signals / "go")


class StubbornWriter(PausingWriter):
    """Does not end with its trainer: what a daemon that hangs in a system call of a network file system looks like."""

    def __init__(self, signals: str, phase: str, step: int) -> None:
        super().__init__(signals, phase, step)
        os._exit = lambda _: time.sleep(PATIENCE_S)  # type: ignore[assignment]

    def commit(self, request: SaveRequest, receipts: list[bytes]) -> None:  # type: ignore[override]
        """Says which process it is, before it hangs, and when it is done."""
        (self.signals / "pid").write_text(str(os.getpid()))
        super().commit(request, receipts)
        if request.step == self.step:
            (self.signals / "committed").touch()


class FullDisk(CheckpointWriter):
    """Writes the first checkpoint; then the disk is full."""

    def __init__(self) -> None:
        super().__init__()
        self.saves = 0

    def write(self, request: SaveRequest) -> bytes:
        """Fails as a full disk does, after some of the bytes."""
        self.saves += 1
        receipt = super().write(request)
        if self.saves > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return receipt


class Counting(CheckpointWriter):
    """Knows how many saves it was in at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def clear(self, request: SaveRequest) -> None:
        """A save begins."""
        self.now += 1
        self.most = max(self.most, self.now)
        super().clear(request)

    def write(self, request: SaveRequest) -> bytes:
        """Takes its time."""
        time.sleep(0.05)
        return super().write(request)

    def superseded(self, request: SaveRequest) -> list[Path]:
        """A save ends."""
        self.now -= 1
        return super().superseded(request)
