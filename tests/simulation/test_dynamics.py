"""The egos' kinematics against closed forms, in the simulator itself."""

from __future__ import annotations

import math

import pytest
import torch

from framework.simulation.dynamics import Bicycle, Dynamics, Unicycle
from framework.simulation.episode import drive
from framework.simulation.scenes import SceneBatch, batch_scenes
from framework.simulation.simulator import Simulator
from tests.scene.bicycle import bicycle_rollout
from tests.simulation.scenes import make_scene

RADII = torch.tensor([8.0, 15.0, 40.0, 200.0, -8.0, -60.0], dtype=torch.float64)


def circling(dynamics: Dynamics, dtype: torch.dtype, speed: float, acceleration: float = 0.0) -> torch.Tensor:
    """States `(radii, 21, 4)` of egos that drive circles of `RADII` (m)."""
    batch = batch_scenes([make_scene(speed=speed, drivable=())], dtype).take([0] * len(RADII))
    batch.curvature[:] = (1 / RADII).to(dtype)
    controls = torch.stack([torch.full_like(RADII, acceleration), 1 / RADII], dim=-1).to(dtype)

    def plan(moments: object, scenes: SceneBatch) -> torch.Tensor:
        return controls[:, None]

    return drive(Simulator(dynamics=dynamics), batch, plan, 20).ego


@pytest.mark.parametrize("dynamics", [Unicycle(), Bicycle()], ids=["unicycle", "bicycle"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("acceleration", [0.0, 1.5])
def test_constant_controls_drive_circles(
    dynamics: Dynamics, dtype: torch.dtype, tolerance: float, acceleration: float
) -> None:
    ego = circling(dynamics, dtype, 6.0, acceleration).double()
    time = torch.arange(21, dtype=torch.float64) / 4
    way = 6.0 * time + acceleration * time**2 / 2
    turn = way / RADII[:, None]
    expected = torch.stack([RADII[:, None] * turn.sin(), RADII[:, None] * (1 - turn.cos())], dim=-1)
    scale = RADII.abs()[:, None, None].clamp(min=1)
    assert ((ego[..., :2] - expected).abs() / scale).max() < tolerance
    wrapped = torch.remainder(ego[..., 2] - turn + math.pi, 2 * math.pi) - math.pi
    assert wrapped.abs().max() < tolerance


def test_a_bicycles_circle_is_that_of_its_wheel_base() -> None:
    initial = torch.tensor([0.0, 0.0, 0.0, 6.0], dtype=torch.float64)
    angle = math.atan(2.8 / 15.0)
    reference = bicycle_rollout(initial, torch.tensor([[0.0, angle]] * 20, dtype=torch.float64), 0.25, 2.8)
    driven = circling(Bicycle(wheel_base=2.8), torch.float64, 6.0)[1, 1:]
    torch.testing.assert_close(driven, reference, atol=1e-9, rtol=0)


def test_limits_cut_off() -> None:
    states, held = torch.tensor([[0.0, 0.0, 0.0, 5.0]] * 2), torch.zeros(2)
    wild = torch.tensor([[50.0, 9.0], [-50.0, -9.0]])
    moved, driven = Unicycle(acceleration_limit=4.0, curvature_limit=0.1)(states, held, wild, 0.25)
    assert driven.tolist() == pytest.approx([0.1, -0.1])
    assert moved[:, 3].tolist() == pytest.approx([6.0, 4.0])


def test_the_front_wheel_takes_its_time() -> None:
    bicycle = Bicycle(wheel_base=2.8, steering_limit=0.5, steering_rate=0.8)
    states, curvature = torch.tensor([[0.0, 0.0, 0.0, 5.0]]), torch.zeros(1)
    angles = []
    for _ in range(4):
        states, curvature = bicycle(states, curvature, torch.tensor([[0.0, 1.0]]), 0.25)
        angles.append(math.atan(2.8 * float(curvature)))
    assert angles == pytest.approx([0.2, 0.4, 0.5, 0.5], abs=1e-6)
