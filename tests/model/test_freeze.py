from __future__ import annotations

import pytest
from torch import nn

from framework.model.freeze import set_trainable


def model() -> nn.Module:
    tied = nn.ModuleDict({"embed": nn.Embedding(5, 4), "body": nn.Linear(4, 4), "head": nn.Linear(4, 5, bias=False)})
    tied["head"].weight = tied["embed"].weight
    return tied


def trained(of: nn.Module) -> set[str]:
    return {name for name, parameter in of.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("patterns", "names", "count"),
    [
        (["*"], {"embed.weight", "body.weight", "body.bias"}, 40),
        (["body.*"], {"body.weight", "body.bias"}, 20),
        (["*", "!*.bias"], {"embed.weight", "body.weight"}, 36),
        (["*", "!body.*", "body.bias"], {"embed.weight", "body.bias"}, 24),
        (["head.weight"], {"embed.weight"}, 20),
        (["*", "!head.*"], {"body.weight", "body.bias"}, 20),
    ],
)
def test_patterns_decide_in_order(patterns: list[str], names: set[str], count: int) -> None:
    of = model()
    assert set_trainable(of, patterns) == (count, 40)
    assert trained(of) == names


def test_a_later_stage_thaws_what_an_earlier_one_froze() -> None:
    of = model()
    set_trainable(of, ["body.bias"])
    set_trainable(of, ["body.weight"])
    assert trained(of) == {"body.weight"}


@pytest.mark.parametrize("pattern", ["bdy.weight", "!bdy.weight"])
def test_a_pattern_that_matches_nothing_names_the_nearest(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"trainable: 'bdy.weight' matches no parameter; the nearest are body.weight"):
        set_trainable(model(), ["*", pattern])


@pytest.mark.parametrize("patterns", [[], ["*", "!*"]])
def test_nothing_left_to_train_is_an_error(patterns: list[str]) -> None:
    with pytest.raises(ValueError, match="no parameter is left"):
        set_trainable(model(), patterns)


def test_an_action_head_trains_unless_it_is_frozen_by_name() -> None:
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "action_head": nn.Linear(2, 3)})
    assert set_trainable(model, []) == (9, 15)
    assert set_trainable(model, ["body.*"]) == (15, 15)
    assert set_trainable(model, ["*", "!action_head.*"]) == (6, 15)
