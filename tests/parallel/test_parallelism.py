"""What a parallel does to a model, and what it tells Lightning."""

from __future__ import annotations

import torch

from framework.parallel.parallelism import Parallelism
from framework.parallel.precision import Precision
from framework.parallel.recompute import Recompute
from tests.parallel.tiny import build


def test_a_model_is_brought_into_its_format_and_its_blocks_wrapped_under_the_same_names() -> None:
    model = build()
    names = [name for name, _ in model.named_parameters()]
    Parallelism(precision=Precision("bfloat16", "bfloat16"), recompute=Recompute()).prepare(model, model.blocks())
    assert [name for name, _ in model.named_parameters()] == names
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert all("forward" in vars(block) for block in model.blocks())


def test_the_trainer_gets_what_the_recipe_says() -> None:
    arguments = Parallelism("cpu", devices=1, deterministic=True).trainer_arguments()
    assert arguments == {"accelerator": "cpu", "devices": 1, "precision": "32-true", "deterministic": True}
    mixed, pure = Precision("float32", "bfloat16"), Precision("bfloat16", "bfloat16")
    assert Parallelism(precision=mixed).trainer_arguments()["precision"] == "bf16-mixed"
    assert Parallelism(precision=pure).trainer_arguments()["precision"] == "32-true"  # Lightning would cast inputs


def test_evaluations_compute_as_training_does() -> None:
    weight, x = torch.randn(3, 3), torch.randn(3)
    for arithmetic in ("float32", "bfloat16"):
        with Parallelism("cpu", precision=Precision("float32", arithmetic)).as_trained():  # type: ignore[arg-type]
            assert (weight @ x).dtype == getattr(torch, arithmetic)
