"""A step whose gradient is not finite changes nothing, and the host need not know of it for that."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from framework.tracking.step_meter import StepMeter
from framework.training.late_step import LateStep
from framework.training.muon import Muon
from framework.training.optim import KahanAdamW
from framework.training.stage_module import StageModule
from tests.training.device_reads import DeviceReads

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adamw": functools.partial(torch.optim.AdamW, fused=True),
    "muon": Muon,
    "sgd": functools.partial(torch.optim.SGD, fused=True, momentum=0.9),
    "adamw_kahan": KahanAdamW,
    "adamw, not fused": torch.optim.AdamW,
}


class Bare(StageModule):
    """A matrix and a vector, whose gradients the test sets."""

    def __init__(self, make: Callable[..., Optimizer]) -> None:
        LightningModule.__init__(self)
        torch.manual_seed(0)
        self.model = cast(Any, nn.Linear(6, 4))
        self.stage_range = cast(Any, SimpleNamespace(stage=SimpleNamespace(clip=1.0)))
        groups = [{"params": [self.model.weight], "matrices": True}, {"params": [self.model.bias], "matrices": False}]
        if make is not Muon:
            groups = [{"params": each["params"]} for each in groups]
        self.made = make(groups, lr=0.1, weight_decay=0.5)

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        return LightningOptimizer(self.made)

    def steps(self, gradients: Sequence[float]) -> list[Tensor]:
        """What the model and the optimizer hold after steps with these numbers in the gradient."""
        generator = torch.Generator().manual_seed(1)
        for number in gradients:
            for parameter in self.model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator) if number == number else None
                if parameter.grad is None:
                    parameter.grad = torch.full_like(parameter, number)
            self.apply_gradients(counts=False)
        state = self.made.state
        held = [t for p in self.model.parameters() for t in state[p].values() if isinstance(t, Tensor)]
        return [*self.model.parameters(), *held]


@pytest.mark.parametrize("gradients", [(1.0, math.nan, 1.0), (math.nan, 1.0, 1.0)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_is_not_finite_changes_neither_weights_nor_state(name: str, gradients: Sequence[float]) -> None:
    with_it = Bare(OPTIMIZERS[name]).steps(gradients)
    without = Bare(OPTIMIZERS[name]).steps([1.0, 1.0])
    assert len(with_it) >= 4
    assert all(torch.equal(one, other) for one, other in zip(with_it, without, strict=True))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_it_is_skipped_without_a_read(name: str) -> None:
    module = Bare(OPTIMIZERS[name])
    with DeviceReads() as reads:
        module.steps([1.0, math.nan, 1.0])
    assert not +reads.counts


class Heard:
    """A callback that keeps the steps it receives."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, dict[str, float]]] = []

    def on_step_read(self, step: int, output: Any) -> None:
        self.steps.append((step, output["metrics"]))


class Reporting(Bare):
    """Completes steps that it did not take, for a callback that hears of them."""

    def __init__(self, heard: Heard, meter: StepMeter | None = None) -> None:
        super().__init__(OPTIMIZERS["adamw"])
        self._late, self.step_meter = None, meter
        self.parallel = cast(Any, SimpleNamespace(compilation=SimpleNamespace(metrics=dict)))
        self.stand_in = SimpleNamespace(callbacks=[heard, object()], datamodule=None, global_step=0)
        self._trainer = cast(Any, self.stand_in)

    def step(self, number: int) -> None:
        self.stand_in.global_step = number
        output: Any = {"loss": torch.tensor(0.0), "tokens": 1, "samples": 1, "metrics": {"lr": 0.1}}
        self.complete(output, torch.tensor([float(number)]), lambda read: {"loss": float(read[0])})


def test_every_step_is_reported_once_in_order_and_the_last_one_on_demand() -> None:
    heard = Heard()
    module, seen = Reporting(heard), []
    for step in (1, 2, 3):
        module.step(step)
        seen.append([number for number, _ in heard.steps])
    module.read_steps()
    module.read_steps()
    assert seen == [[], [1], [1, 2]]
    assert heard.steps == [(step, {"lr": 0.1, "loss": float(step)}) for step in (1, 2, 3)]


class Device:
    """A device that takes 5 s for what it is handed."""

    def __init__(self) -> None:
        self.now = self.done = 0.0

    def copied(self) -> SimpleNamespace:
        self.done = max(self.done, self.now) + 5.0
        return SimpleNamespace(synchronize=functools.partial(self.wait, self.done))

    def wait(self, until: float) -> None:
        self.now = max(self.now, until)


def test_no_step_is_faster_than_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also not after the host has waited for it, as it does to save step 3: step 4 alone takes 1 s more."""
    device, heard = Device(), Heard()
    monkeypatch.setattr(
        LateStep, "of", lambda step, output, *read: LateStep(step, output, read[0], cast(Any, device.copied()), read[1])
    )
    monkeypatch.setattr("framework.tracking.step_meter.time", SimpleNamespace(perf_counter=lambda: device.now))
    module = Reporting(heard, StepMeter(every=1))
    for step in (1, 2, 3, 4, 5):
        device.now += 1.0  # the host's own work
        module.step(step)
        if step == 3:
            module.read_steps()
    module.read_steps()
    assert [metrics["step_s"] for _, metrics in heard.steps] == [1.0, 5.0, 5.0, 6.0, 5.0]


def test_what_ends_the_run_is_raised_when_the_step_is_read() -> None:
    def fail(read: Tensor) -> dict[str, float]:
        raise ValueError(f"loss {float(read[0])}")

    late = LateStep.of(1, cast(Any, {"metrics": {}}), torch.ones(1), fail)
    with pytest.raises(ValueError, match=r"loss 1\.0"):
        late.read()
