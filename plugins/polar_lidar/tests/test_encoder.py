"""The encoder's cells against geometry worked out by hand; its output against its own definition on single cells."""

from __future__ import annotations

import math
from pathlib import Path

import polar_lidar
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from polar_lidar.encoder import PolarPillars


@pytest.fixture
def encoder() -> PolarPillars:
    torch.manual_seed(0)
    return PolarPillars(hidden=16, tokens=32, rings=4, reach=64.0)


@pytest.mark.parametrize(
    ("distance", "azimuth_degrees", "ring", "sector"),
    [(1.0, -170.0, 0, 0), (5.0, 10.0, 1, 4), (17.0, 100.0, 2, 6), (40.0, -100.0, 3, 1), (500.0, 179.9, 3, 7)],
)
def test_cells(encoder: PolarPillars, distance: float, azimuth_degrees: float, ring: int, sector: int) -> None:
    azimuth = math.radians(azimuth_degrees)
    point = torch.tensor([[[distance * math.cos(azimuth), distance * math.sin(azimuth), 0.0, 0.0]]])
    assert encoder.cell_of(point).item() == ring * 8 + sector


def test_padding_and_the_order_of_points_change_nothing(encoder: PolarPillars) -> None:
    values = torch.randn(2, 50, 4) * 20
    mask = torch.ones(2, 50, dtype=torch.bool)
    features, keep = encoder(values, mask)
    assert features.shape == (2, 32, 16)
    assert keep.shape == (2, 32)
    assert keep.all()
    shuffled, _ = encoder(values[:, torch.randperm(50)], mask)
    torch.testing.assert_close(shuffled, features)
    padded = torch.cat([values, torch.full((2, 7, 4), 99.0)], dim=1)
    longer, _ = encoder(padded, torch.cat([mask, torch.zeros(2, 7, dtype=torch.bool)], dim=1))
    torch.testing.assert_close(longer, features)


def test_a_point_changes_its_own_cell_alone(encoder: PolarPillars) -> None:
    empty, _ = encoder(torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.bool))
    point = torch.tensor([[[5.0, 1.0, 0.5, 0.3]]])
    full, _ = encoder(point, torch.ones(1, 1, dtype=torch.bool))
    changed = (full - empty).abs().sum(-1)[0].nonzero().flatten().tolist()
    assert changed == [encoder.cell_of(point).item()]
    assert empty.isfinite().all()


def test_every_parameter_learns(encoder: PolarPillars) -> None:
    features, _ = encoder(torch.randn(2, 40, 4) * 20, torch.ones(2, 40, dtype=torch.bool))
    features.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in encoder.parameters())


def test_tokens_must_fill_the_rings() -> None:
    with pytest.raises(ValueError, match=r"tokens \(30\) must be a multiple of rings \(4\)"):
        PolarPillars(hidden=16, tokens=30, rings=4)


def test_its_preset_makes_it() -> None:
    preset = OmegaConf.load(Path(polar_lidar.__file__).parent / "conf/model/encoders/polar_lidar.yaml")
    preset.update({"tokens": 16, "reach": 50.0})  # what a recipe's sensors give
    made = instantiate(preset)(hidden=16)
    assert isinstance(made, PolarPillars)
    assert made.cells.num_embeddings == preset.tokens
