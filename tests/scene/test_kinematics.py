"""Kinematics against closed forms, and inverses against themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.scene.frames import wrap_angle
from framework.scene.kinematics import (
    fit_controls,
    unicycle_controls,
    unicycle_rollout,
)
from framework.scene.types import Trajectory
from tests.scene.bicycle import bicycle_controls, bicycle_rollout

DT = 0.25


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 20.0))
def test_the_inverse_is_exact_while_moving(seed: int, speed: float) -> None:
    rng = np.random.default_rng(seed)
    controls = np.stack([rng.uniform(0.1, 3.0, (5, 20)), rng.uniform(-0.2, 0.2, (5, 20))], axis=-1)
    initial = np.tile([1.0, -2.0, 3.0, speed], (5, 1))
    states = unicycle_rollout(initial, controls, DT)
    np.testing.assert_allclose(unicycle_controls(initial, states, DT), controls, atol=1e-8)
    np.testing.assert_allclose(unicycle_rollout(initial, unicycle_controls(initial, states, DT), DT), states, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_states_survive_a_round_trip_through_stops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    controls = np.stack([rng.uniform(-6, 3, 20), rng.uniform(-0.2, 0.2, 20)], axis=-1)
    initial = np.array([0.0, 0.0, 0.0, rng.uniform(0, 8)])
    states = unicycle_rollout(initial, controls, DT)
    assert (states[:, 3] >= 0).all()
    again = unicycle_rollout(initial, unicycle_controls(initial, states, DT), DT)
    np.testing.assert_allclose(again, states, atol=1e-5)


def test_a_step_that_would_reverse_stops_at_the_braking_distance() -> None:
    states = unicycle_rollout(np.array([0.0, 0.0, 0.0, 1.0]), np.array([[-8.0, 0.0], [-8.0, 0.1]]), DT)
    np.testing.assert_allclose(states, [[1 / 16, 0, 0, 0], [1 / 16, 0, 0, 0]])


def test_standstill_has_no_curvature() -> None:
    initial = np.zeros(4)
    controls = unicycle_controls(initial, np.zeros((4, 4)), DT)
    np.testing.assert_array_equal(controls, 0.0)


def test_constant_curvature_closes_a_circle() -> None:
    radius, speed, steps = 20.0, 5.0, 4000
    dt = 2 * math.pi * radius / speed / steps
    states = unicycle_rollout(np.array([0.0, 0.0, 0.0, speed]), np.tile([0.0, 1 / radius], (steps, 1)), dt)
    np.testing.assert_allclose(states[-1, :2], 0.0, atol=0.1)
    np.testing.assert_allclose(states[steps // 2 - 1, :2], [0.0, 2 * radius], atol=0.1)


def test_bicycle_inverts_and_turns_on_its_own_circle() -> None:
    initial = np.array([0.0, 0.0, 0.0, 4.0])
    controls = np.tile([0.2, 0.15], (12, 1))
    states = bicycle_rollout(initial, controls, DT, wheel_base=2.9)
    np.testing.assert_allclose(bicycle_controls(initial, states, DT, wheel_base=2.9), controls, atol=1e-9)
    turned = wrap_angle(states[-1:, 2])[0]
    travelled = 4.0 * 3 + 0.2 * 9 / 2
    assert turned == pytest.approx(travelled * math.tan(0.15) / 2.9)


def test_torch_agrees_with_numpy_and_has_gradients() -> None:
    rng = np.random.default_rng(0)
    initial, controls = np.tile([0.0, 0.0, 0.5, 6.0], (3, 1)), rng.uniform(-0.2, 0.2, (3, 8, 2))
    tensor = torch.tensor(controls, requires_grad=True)
    states = unicycle_rollout(torch.tensor(initial), tensor, DT)
    np.testing.assert_allclose(states.detach().numpy(), unicycle_rollout(initial, controls, DT), atol=1e-12)
    states.sum().backward()
    assert tensor.grad is not None
    assert torch.isfinite(tensor.grad).all()


def test_gradients_are_finite_at_a_stop() -> None:
    controls = torch.full((6, 2), -3.0, requires_grad=True)
    unicycle_rollout(torch.tensor([0.0, 0.0, 0.0, 1.0]), controls, DT).sum().backward()
    assert controls.grad is not None
    assert torch.isfinite(controls.grad).all()


def test_fitting_noisy_poses_keeps_the_path_and_loses_the_jerk() -> None:
    rng = np.random.default_rng(3)
    initial = np.array([0.0, 0.0, 0.0, 8.0])
    truth = unicycle_rollout(initial, np.tile([0.5, 0.03], (20, 1)), DT)
    noisy = truth.copy()
    noisy[:, :2] += rng.normal(0, 0.05, (20, 2))
    fitted = fit_controls(initial, Trajectory(noisy))
    rolled = unicycle_rollout(initial, fitted, DT)
    assert np.linalg.norm(rolled[:, :2] - truth[:, :2], axis=1).max() < 0.15
    logged = np.concatenate([initial[None], noisy])
    logged[1:, 3] = np.linalg.norm(np.diff(logged[:, :2], axis=0), axis=1) / DT
    naive = unicycle_controls(initial, logged[1:], DT)
    assert np.abs(np.diff(fitted[:, 0])).max() < 0.1 * np.abs(np.diff(naive[:, 0])).max()
    assert np.abs(fitted[:, 1] - 0.03).max() < 0.01


def test_a_stop_from_a_crawl_is_inverted_too() -> None:
    initial, controls = np.array([0.0, 0.0, 0.0, 0.003]), np.array([[-6.0, 0.0], [2.0, 0.1]])
    states = unicycle_rollout(initial, controls, DT)
    np.testing.assert_allclose(unicycle_controls(initial, states, DT), controls, atol=1e-6)


def test_an_arc_ends_where_the_circle_is() -> None:
    radius, angle = 10.0, 1.2
    states = unicycle_rollout(np.array([0.0, 0.0, 0.0, radius * angle]), np.array([[0.0, 1 / radius]]), 1.0)
    end = [radius * math.sin(angle), radius * (1 - math.cos(angle)), angle, radius * angle]
    np.testing.assert_allclose(states[0], end, atol=1e-12)
