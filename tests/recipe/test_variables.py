"""What interpolations call: variables by name, nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from framework.recipe.variables import refused_calls, variables_read


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("${oc.env:HOME}", ["HOME"]),
        ('${oc.env:"HOME"}', ["HOME"]),
        ("${oc.env:A,${oc.env:'B'}}", ["A", "B"]),
        ("a ${oc.env:A} and ${oc.env:B,none}", ["A", "B"]),
        (r"\${oc.env:A}", []),
        ("${a.b}", []),
        (3, []),
    ],
)
def test_variables_are_found_however_they_are_nested_or_quoted(text: Any, names: list[str]) -> None:
    assert [name for _, name in variables_read({"key": [text]})] == names
    assert list(refused_calls({"key": [text]})) == []


@pytest.mark.attack("interpolation", "resolvers other than oc.env, names put together", "refused")
@pytest.mark.parametrize(
    "text",
    [
        "${oc.create:{_target_: builtins.open}}",
        "${oc.decode:${oc.env:A}}",
        "${oc.env:WANDB_${a}_KEY}",
        "${oc.env:${a}}",
        "${oc.${a}:HOME}",
        "${oc.select:a,b}",
        "${oc.create:[\"${oc.env:''A''}\"]}",
    ],
)
def test_other_calls_are_refused(text: str) -> None:
    assert [key for key, _ in refused_calls({"key": text})]
