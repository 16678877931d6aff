"""Every encoder: padding and order do not matter, emptiness is harmless, what matters is seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from framework.model.encoders.base import Encoder
from framework.model.encoders.boxes import BoxEncoder
from framework.model.encoders.calibration import CalibrationEncoder
from framework.model.encoders.ego import EgoEncoder
from framework.model.encoders.lidar import PillarEncoder
from framework.model.encoders.radar import RadarEncoder
from framework.scene.types import CLASSES

HIDDEN = 64
MAKERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "lidar": (lambda: PillarEncoder(hidden=HIDDEN, tokens=4, cells=16), 4),
    "radar": (lambda: RadarEncoder(hidden=HIDDEN, tokens=3), 5),
    "boxes": (lambda: BoxEncoder(hidden=HIDDEN), 11),
    "polar": (lambda: BoxEncoder(hidden=HIDDEN, polar=True, references=12), 11),
    "ego": (lambda: EgoEncoder(hidden=HIDDEN), 4),
    "calibration": (lambda: CalibrationEncoder(hidden=HIDDEN, grid=2), 15),
}
everyone = pytest.mark.parametrize("name", list(MAKERS))


def encoder(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MAKERS[name][0]()


def rows(name: str, count: int, seed: int = 1) -> Tensor:
    values = torch.randn(count, MAKERS[name][1], generator=torch.Generator().manual_seed(seed)) * 10
    if name in ("boxes", "polar"):
        values[:, 9] = torch.arange(count) % len(CLASSES)
    return values


def padded(*parts: Tensor) -> tuple[Tensor, Tensor]:
    """Samples side by side; the padding is rubbish, so that an encoder that reads it is found out."""
    longest = max(map(len, parts)) + 2
    values = torch.full((len(parts), longest, parts[0].shape[1]), 3.0)
    mask = torch.zeros(len(parts), longest, dtype=torch.bool)
    for index, part in enumerate(parts):
        values[index, : len(part)], mask[index, : len(part)] = part, True
    return values, mask


def alone(model: nn.Module, part: Tensor) -> Tensor:
    features, keep = model(part[None], torch.ones(1, len(part), dtype=torch.bool))
    return features.flatten(0, 1) if keep is None else features[keep]


@everyone
def test_padding_and_neighbours_change_nothing(name: str) -> None:
    model = encoder(name)
    few, many = rows(name, 4), rows(name, 9, seed=2)
    with torch.no_grad():
        features, keep = model(*padded(few, many))
        kept = features.flatten(0, 1) if keep is None else features[keep]
        torch.testing.assert_close(kept, torch.cat([alone(model, few), alone(model, many)]))
    assert isinstance(model, Encoder)


@everyone
def test_a_sample_without_rows_is_finite_forwards_and_backwards(name: str) -> None:
    model = encoder(name)
    features, _ = model(torch.zeros(1, 3, MAKERS[name][1]), torch.zeros(1, 3, dtype=torch.bool))
    features.sum().backward()
    assert features.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@everyone
def test_tokens_have_the_scale_of_word_embeddings(name: str) -> None:
    features = alone(encoder(name), rows(name, 8))
    assert 0.01 < float(features.std().detach()) < 0.04


@everyone
@pytest.mark.parametrize("mixed", [True, False])
def test_half_precision_is_close(name: str, mixed: bool) -> None:
    exact, rough = encoder(name), encoder(name)
    if not mixed:
        rough = rough.bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        found = alone(rough, rows(name, 6)).float()
    with torch.no_grad():
        expected = alone(exact, rows(name, 6))
    assert float(nn.functional.cosine_similarity(found, expected, dim=-1).min()) > 0.99


@pytest.mark.parametrize("name", ["lidar", "radar"])
def test_the_order_of_returns_does_not_matter(name: str) -> None:
    model, values = encoder(name), rows(name, 12)
    with torch.no_grad():
        torch.testing.assert_close(alone(model, values.flip(0)), alone(model, values))


def test_a_pillar_keeps_the_maximum_of_its_points() -> None:
    """Against a loop over points: two share a pillar, one is outside."""
    model = encoder("lidar")
    assert isinstance(model, PillarEncoder)
    grids: list[Tensor] = []
    model.network.register_forward_pre_hook(lambda _, inputs: grids.append(inputs[0]))
    size = 2 * 51.2 / 16
    points = torch.tensor(
        [[1.0, -1.0, 0.5, 0.2], [5.0, -6.0, 1.5, 0.9], [-40.0, 20.0, 0.0, 0.1], [60.0, 0.0, 0.0, 1.0]]
    )
    expected = torch.zeros(1, model.features, 16, 16)
    with torch.no_grad():
        alone(model, points)
        for x, y, z, intensity in points[:3].tolist():
            i, j = int((x + 51.2) // size), int((y + 51.2) // size)
            offset = [(x + 51.2) / size - i - 0.5, (y + 51.2) / size - j - 0.5]
            embedded = model.point(torch.tensor([x / 51.2, y / 51.2, z / 3, intensity, *offset]))
            expected[0, :, i, j] = torch.maximum(expected[0, :, i, j], embedded)
    torch.testing.assert_close(grids[0], expected, atol=1e-5, rtol=1e-4)


def test_lidar_tokens_are_a_square() -> None:
    with pytest.raises(ValueError, match=r"tokens: 5 is no square number; 4 or 9 is"):
        PillarEncoder(hidden=HIDDEN, tokens=5)


def test_a_box_is_known_to_the_decimetre_and_by_its_kind() -> None:
    """A decimetre at 50 m moves the token by more than the rounding of bfloat16; the class and the score count too."""
    model = encoder("boxes")
    box = torch.tensor([[50.0, -8.0, 0.5, 4.6, 1.9, 1.6, 0.3, 5.0, 0.0, 0.0, 0.9]])
    with torch.no_grad():
        token = alone(model, box)
        for channel, step in ((0, 0.1), (1, 0.1), (6, 0.1), (7, 0.1), (9, 1.0), (10, 0.5)):
            other = box.clone()
            other[0, channel] += step
            assert float((alone(model, other) - token).norm() / token.norm()) > 0.02, channel


def test_the_newest_state_looks_the_same_however_long_the_history_is() -> None:
    model, states = encoder("ego"), rows("ego", 7)
    with torch.no_grad():
        torch.testing.assert_close(alone(model, states)[-1], alone(model, states[3:])[-1])
        assert not torch.allclose(alone(model, states[[0, 0]])[0], alone(model, states[[0, 0]])[1])


def test_a_history_that_is_too_long_is_named() -> None:
    with pytest.raises(ValueError, match=r"33 history states.*room for 32.*model\.encoders\.ego\.states"):
        alone(encoder("ego"), rows("ego", 33))


def test_a_change_of_speed_and_of_heading_stands_out() -> None:
    """A usual braking and turning from one state to the next moves the token as much as metres of place do."""
    model = encoder("ego")
    steady = torch.tensor([[-2.5, 0.0, 0.0, 10.0], [0.0, 0.0, 0.0, 10.0]])
    with torch.no_grad():
        token = alone(model, steady)[1]
        for channel, step in ((2, -0.05), (3, 0.5)):
            other = steady.clone()
            other[0, channel] += step
            assert float((alone(model, other)[1] - token).norm() / token.norm()) > 0.1, channel


def test_headings_may_wrap_round() -> None:
    model = encoder("ego")
    across = torch.tensor([[0.0, 0.0, torch.pi - 0.02, 5.0], [0.0, 0.0, -torch.pi + 0.02, 5.0]])
    with torch.no_grad():
        unwrapped = across + torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 2 * torch.pi, 0.0]])
        torch.testing.assert_close(alone(model, across), alone(model, unwrapped), atol=1e-6, rtol=1e-4)


def test_a_camera_that_is_turned_or_moved_has_another_token() -> None:
    """By two degrees, or by a decimetre: rigs differ by more."""
    model, row = encoder("calibration"), torch.tensor([[1.5, 0.0, 1.6, *[0.8, 0.6, 0.0] * 4]])
    turned, moved = row.clone(), row.clone()
    turned[0, 3:] = torch.tensor([0.7786, 0.6275, 0.0]).repeat(4)
    moved[0, 0] += 0.1
    with torch.no_grad():
        token = alone(model, row)
        for other in (turned, moved):
            assert float((alone(model, other) - token).norm() / token.norm()) > 0.03


def test_polar_features_are_the_distance_and_the_bearing() -> None:
    """A box behind on the right, 5 m away, after the boxes' own values."""
    model = encoder("polar")
    assert isinstance(model, BoxEncoder)
    given: list[Tensor] = []
    model.projector.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    row = torch.zeros(1, 11)
    row[0, :2] = torch.tensor([-3.0, -4.0])
    alone(model, row)
    _, lengths, bearing, _ = given[0][0, 0].split([2 * model.bands * 10, 10, 2, 1 + 32])
    torch.testing.assert_close(lengths, torch.tensor([-3.0, -4.0, *[0.0] * 7, 5.0]) / 20.0)
    torch.testing.assert_close(bearing, torch.tensor([-0.8, -0.6]))
