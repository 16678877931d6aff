"""Every number that a component takes declares its range, and no value outside of one passes the check."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from typing import Any

import pytest
from annotated_types import Interval

from framework.recipe import ranges
from framework.recipe.allow import FUNCTIONS
from framework.recipe.annotation import misfit
from framework.recipe.bounds import describe, within
from framework.recipe.catalogue import Catalogue
from framework.recipe.check import check
from framework.recipe.libraries import library_misfit, range_of
from framework.recipe.reference import components, describe_component, numbers
from framework.recipe.signature import locate, read_module, signature

Write = Callable[[str, str], str]
ABSURD = (math.nan, math.inf, -math.inf, 1e30, 10**30, True, "3")
"""Values that no number of a component may have."""


def refused(value: Any, annotation: str) -> str | None:
    source = read_module("framework.recipe.ranges")
    assert source is not None
    return misfit(value, ast.parse(annotation, mode="eval").body, source)


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        ("PositiveCount", 0, "must be an integer from 1 to 1_000_000_000, not 0"),
        ("PositiveCount", 1.5, "must be an integer from 1 to 1_000_000_000, not a number (1.5)"),
        ("LearningRate", math.nan, "must be a number from 1e-12 to 10, not nan"),
        ("Port | None", 70_000, "must be an integer from 1 to 65_535 or null, not an integer (70000)"),
        ("tuple[Decay, Decay]", [0.9, 1.0], "at position 1 must be a number at least 0 and below 1, not 1.0"),
        ("dict[str, Share]", {"a": 0.5, "b": 2}, "at 'b' must be a number from 0 to 1, not 2"),
        ("dict[Count, Share]", {-1: 0.5}, "the key '-1' must be an integer from 0 to 1_000_000_000, not -1"),
        ("float", math.inf, "must be a number, not inf"),
        ("Literal['auto'] | Nodes", "auto", None),
        ("LearningRate", 1e-5, None),
        ("Wait", 0, None),
    ],
)
def test_the_message_names_the_bound_and_the_value(annotation: str, value: Any, message: str | None) -> None:
    assert refused(value, annotation) == message


def test_bounds_agree_with_comparisons() -> None:
    for low_open in (True, False):
        for value in (-1.0, 0.0, 0.5, 1.0, 2.0, math.nan):
            bound = Interval(gt=0, le=1) if low_open else Interval(ge=0, lt=1)
            assert within(value, [bound]) == ((0 < value <= 1) if low_open else (0 <= value < 1))
    assert describe([Interval(ge=1)]) == "at least 1"


def test_every_alias_is_a_number_with_two_bounds() -> None:
    aliases = {name: value for name, value in vars(ranges).items() if hasattr(value, "__metadata__")}
    assert len(aliases) > 20
    for name, alias in aliases.items():
        (bound,) = alias.__metadata__
        assert None not in ((bound.gt, bound.ge)[bound.gt is None], (bound.lt, bound.le)[bound.lt is None]), name


def test_every_number_of_every_component_declares_its_range() -> None:
    bare = [
        f"{each.module}.{each.qualname}({argument.name})"
        for each in components()
        for argument in signature(each).parameters.values()
        if "" in numbers(argument.annotation, argument.source)
    ]
    assert not bare, f"annotate with a range of framework.recipe.ranges: {bare}"


def test_every_number_of_an_optimizer_or_schedule_has_a_range() -> None:
    module = read_module("torch.optim")
    assert module is not None
    targets = [f"torch.optim.{name}" for name in module.imports if name[0].isupper()]
    bare = []
    for target in [*targets, *FUNCTIONS]:
        located = locate(target)
        for argument in signature(located).parameters.values():
            if list(numbers(argument.annotation, argument.source)) and range_of(located, argument.name) is None:
                bare.append((target, argument.name))
    assert not bare


@pytest.mark.parametrize(
    ("argument", "value"), [("lr", -1e-3), ("betas", [0.9, 1.0]), ("eps", 2.0), ("weight_decay", -1)]
)
def test_numbers_of_libraries_are_refused(argument: str, value: Any) -> None:
    adamw = locate("torch.optim.AdamW")
    assert library_misfit(adamw, argument, value)
    assert not library_misfit(adamw, "betas", [0.9, 0.95])


@pytest.mark.fault("numbers out of range")
def test_no_number_of_a_component_may_be_absurd() -> None:
    slots = 0
    for each in components():
        for argument in signature(each).parameters.values():
            if not list(numbers(argument.annotation, argument.source)):
                continue
            slots += 1
            for value in ABSURD:
                text = isinstance(value, bool | str) and misfit(value, argument.annotation, argument.source) is None
                spelled = ast.unparse(argument.annotation) if argument.annotation else ""
                assert (text and ("bool" in spelled or "str" in spelled)) or misfit(
                    value, argument.annotation, argument.source
                ), f"{each.qualname}.{argument.name} takes {value}"
    assert slots > 200


def test_the_values_at_the_root_have_ranges(catalogue: Catalogue) -> None:
    for override, wanted in (("run.seed=1.5", "run.seed: must be an integer from 0"), ("run.seed=-1", "not -1")):
        _, problems = check(["recipe=toy", override], catalogue)
        assert [problem for problem in problems if wanted in str(problem)], override


def test_a_value_is_named_where_it_is_written(catalogue: Catalogue, recipe: Write) -> None:
    name = recipe("planted", "defaults: [toy, _self_]\nrates:\n  lr: -1\noptimizer:\n  lr: ${rates.lr}\n")
    _, problems = check([f"recipe={name}"], catalogue)
    (fault,) = [str(problem) for problem in problems if not problem.warning]
    assert fault == (
        "recipes/planted.yaml:4 rates.lr: must be a number from 1e-12 to 10, not -1; the default is 0.001 "
        "(read by optimizer.lr)"
    )


def test_the_reference_tells_type_default_range_and_description() -> None:
    stage = describe_component(locate("framework.training.stages.SupervisedStage"))
    by_name = {argument.name: argument for argument in stage.arguments}
    lr, clip = by_name["lr"], by_name["clip"]
    assert (lr.type, lr.default, lr.range) == ("float", None, "from 1e-12 to 10")
    assert (clip.default, clip.description) == ("1.0", "Norm to which gradients are clipped.")
    codec = describe_component(locate("framework.model.codecs.waypoints.WaypointCodec"))
    assert [each.description for each in codec.arguments] == [
        "Number of points.",
        "Points per second.",
        "Decimal places of the coordinates.",
    ]
    assert "Args:" not in codec.description


def test_a_range_that_cannot_be_read_is_an_error(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unreadable_range.py").write_text(
        "from typing import Annotated\nfrom annotated_types import Gt\nX = Annotated[int, Gt(open('x'))]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    source = read_module("unreadable_range")
    assert source is not None
    with pytest.raises(ValueError, match="no plain numbers"):
        misfit(1, ast.parse("X", mode="eval").body, source)


@pytest.mark.fault("numbers out of range")
@pytest.mark.parametrize(
    ("annotation", "value", "said"),
    [
        ("LearningRate", 5e-324, "5e-324, which is 0 in float32"),
        ("LearningRate", 1e-30, "from 1e-12 to 10, not 1e-30"),
        ("Weight", 1e-300, "which is 0 in float32"),
        ("Weight", 2.0**-127, "which is 0 in float32"),
        ("Finite", -1e-310, "which is 0 in float32"),
        ("float", 5e-324, "which is 0 in float32"),
        ("Decay", 0.99999999999, "below 1, not 0.99999999999 (in float32 1)"),
        ("Rate", 1e-9, "from 1e-06 to 1_000, not 1e-09"),
        ("Seconds", 1e-12, "from 1e-06"),
        ("dict[str, Weight]", {"a": 5e-324}, "at 'a' must be a number from 0"),
        ("list[Share]", [0.5, 1e-320], "at position 1 must be"),
        ("Annotated[list[str], MinLen(1)]", [], "is empty"),
        ("Annotated[dict[str, Share], MinLen(1)] | None", {}, "is empty"),
    ],
)
def test_numbers_that_vanish_and_lists_that_say_nothing_are_refused(annotation: str, value: Any, said: str) -> None:
    assert said in str(refused(value, annotation))


@pytest.mark.parametrize(
    ("annotation", "value"),
    [("Weight", 0.0), ("LearningRate", 1e-12), ("Decay", 0.9999999), ("Share", 2.0**-126), ("Finite", -0.0)],
)
def test_numbers_that_are_merely_small_are_taken(annotation: str, value: float) -> None:
    assert refused(value, annotation) is None


@pytest.mark.fault("numbers out of range")
def test_what_no_run_could_mean_is_refused_by_the_check() -> None:
    wrong = {
        "stage.lr=5e-324": "stage.lr: must be a number from 1e-12 to 10, not 5e-324, which is 0 in float32",
        "+paths._recursive_=false": "paths._recursive_: stands in a section",
        "+run._convert_=all": "run._convert_: stands in a section",
        "+_partial_=true": " _partial_: stands in a section",
        "+stage.data._args_=1": "_args_: stands in a section",
        "model.backbone.name=''": "model.backbone.name: is blank",
    }
    _, problems = check(["recipe=sft_drive", *wrong])
    told = [str(problem).replace("curriculum.stages.drive", "stage") for problem in problems]
    for override, said in wrong.items():
        assert [each for each in told if said in each], (override, told)


@pytest.mark.fault("numbers out of range")
@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (["trainable=[]"], True),
        (["trainable=['!*.bias']"], True),
        (["trainable=[]", "model/adapters=lora"], False),
        (["trainable=[]", "model/action_head=flow"], False),
    ],
)
@pytest.mark.slow
def test_a_stage_in_which_nothing_trains_is_refused(words: list[str], refused: bool) -> None:
    _, problems = check(["recipe=demo", f"curriculum.stages.broad.{words[0]}", *words[1:]])
    said = "trainable: Train refuses it: selects nothing to train"
    assert bool([problem for problem in problems if said in str(problem)]) is refused
