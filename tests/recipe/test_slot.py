"""Components are refused where the argument's annotation has no place for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from framework.recipe.signature import locate, signature
from framework.recipe.slot import unfit

SOURCE = '''
from __future__ import annotations
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

class Shape(ABC):
    def area(self): ...

class Square(Shape):
    pass

class Wheel:
    def roll(self): ...

class Rolls(Protocol):
    """What rolls."""
    size: int
    def roll(self): ...

class Ball:
    def __init__(self):
        self.size = 1
    def roll(self): ...

@dataclass
class Cart:
    name: str
    shape: Shape
    names: Sequence[str]
    rolls: Rolls
    shapes: Mapping[str, Shape]
    maker: Callable[[int], Shape]
    number: float | Sequence[Shape] | None
    mode: Literal["a", "b"]
    quoted: "Shape | None"
    anything: Any
'''


@pytest.fixture(scope="module", autouse=True)
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("slots")
    (folder / "slot_shapes.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


def of(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"slot_shapes.{name}", **arguments}


def wrong(argument: str, value: Any) -> str | None:
    parameter = signature(locate("slot_shapes.Cart")).parameters[argument]
    return unfit(value, parameter.annotation, parameter.source)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("shape", of("Square")),
        ("shape", of("Shape")),
        ("names", ["a", "b"]),
        ("rolls", of("Ball")),
        ("shapes", {"one": of("Square")}),
        ("maker", of("Square", _partial_=True)),
        ("number", [of("Square")]),
        ("number", 1.0),
        ("number", None),
        ("quoted", of("Square")),
        ("quoted", None),
        ("anything", of("Wheel")),
    ],
)
def test_what_fits_is_taken(argument: str, value: Any) -> None:
    assert wrong(argument, value) is None


@pytest.mark.attack("target", "a component where the argument's type has no place for it", "refused")
@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("name", of("Square"), "must be a str, which slot_shapes.Square is not"),
        ("names", [of("Square")], "must be a str"),
        ("names", ["a", of("Square")], "must be a str"),
        ("shape", of("Wheel"), "must be a Shape, which slot_shapes.Wheel is not"),
        ("rolls", of("Wheel"), "must be a Rolls, which slot_shapes.Wheel is not: it has no size"),
        ("rolls", of("Square"), "it has no roll, size"),
        ("shapes", {"one": of("Square"), "two": of("Wheel")}, "must be a Shape"),
        ("maker", of("Wheel", _partial_=True), "must be a Shape"),
        ("number", of("Square"), "must be a float"),
        ("number", [of("Wheel")], "must be a"),
        ("mode", of("Square"), "must be a Literal"),
        ("quoted", of("Wheel"), "must be a Shape"),
    ],
)
def test_what_does_not_fit_is_refused(argument: str, value: Any, message: str) -> None:
    assert message in (wrong(argument, value) or "nothing")


def test_what_cannot_be_read_is_left_open(tmp_path: Path) -> None:
    assert wrong("shape", {"_target_": "no.such.thing"}) is None, "the check says that by itself"
    assert wrong("shape", {"_target_": "math.sqrt"}) is None
