"""Sensors, images and text in one sequence."""

from __future__ import annotations

import pytest
import torch

from framework.model.assembly import LanguageActionModel

from .conftest import EVERYTHING, NOTHING, build, make_batch

SOME = ("Which way?", 1, ("ego", "boxes"))


def test_every_parameter_gets_a_gradient() -> None:
    model = build().train()
    batch = make_batch(model, [EVERYTHING, SOME], side="right")
    model.head(model(batch)).logsumexp(-1).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


@pytest.mark.parametrize("side", ["left", "right"])
def test_neighbours_and_padding_change_nothing(model: LanguageActionModel, side: str) -> None:
    samples = [EVERYTHING, NOTHING, SOME]
    with torch.no_grad():
        together = make_batch(model, samples, side)
        hidden = model(together)
        for row, sample in enumerate(samples):
            alone = model(make_batch(model, [sample], side))[0]
            torch.testing.assert_close(hidden[row][together["attention_mask"][row].bool()], alone, atol=2e-5, rtol=1e-4)


def test_positions_choose_rows_of_the_hidden_states(model: LanguageActionModel) -> None:
    batch = make_batch(model, [EVERYTHING, SOME], side="right")
    positions = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    positions[0, 3] = positions[1, 7] = True
    with torch.no_grad():
        torch.testing.assert_close(model(batch, positions), model(batch)[positions])


def test_a_sensor_is_read(model: LanguageActionModel) -> None:
    for name in ("lidar", "radar", "boxes", "ego"):
        batch = make_batch(model, [EVERYTHING])
        with torch.no_grad():
            before = model(batch)[0, -1]
            batch["sensors"][name]["values"][:, 0, 0] += 3.0
            after = model(batch)[0, -1]
        assert not torch.allclose(before, after), name


def test_placeholders_that_do_not_fit_are_named(model: LanguageActionModel) -> None:
    batch = make_batch(model, [EVERYTHING])
    batch["sensors"]["boxes"]["mask"][:, -1] = True
    with pytest.raises(ValueError, match=r"sensor boxes.*4 tokens.*3 placeholders"):
        model(batch)


def test_a_sensor_without_encoder_is_named(model: LanguageActionModel) -> None:
    batch = make_batch(model, [EVERYTHING])
    batch["sensors"]["thermal"] = batch["sensors"]["lidar"]
    with pytest.raises(ValueError, match=r"sensor thermal.*model\.encoders\.thermal"):
        model(batch)


def test_on_the_meta_device_nothing_is_allocated() -> None:
    with torch.device("meta"):
        model = build()
    assert model.processor is None
    assert all(p.is_meta for p in model.parameters())
