"""Signatures read from source agree with Python's own of the imported objects."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import textwrap
from importlib import import_module
from pathlib import Path

import pytest

from framework.recipe import signature as room
from framework.recipe.annotation import misfit
from framework.recipe.signature import NoSuchTarget, locate, signature


@pytest.mark.parametrize(
    "target",
    [
        "torch.optim.AdamW",
        "torch.optim.SGD",
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "torch.nn.Linear",
        "torch.nn.CrossEntropyLoss",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.loggers.CSVLogger",
        "torchmetrics.MeanMetric",
        "transformers.optimization.get_cosine_schedule_with_warmup",
        "framework.scene.types.Trajectory",
        "framework.recipe.catalogue.Catalogue",
    ],
)
def test_agrees_with_the_imported_object(target: str) -> None:
    module, _, name = target.rpartition(".")
    real = inspect.signature(getattr(import_module(module), name)).parameters
    read = signature(locate(target))
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = {key: each for key, each in real.items() if each.kind not in variable}
    assert list(read.parameters) == list(named)
    assert {key for key, each in read.parameters.items() if each.required} == {
        key for key, each in named.items() if each.default is inspect.Parameter.empty
    }
    assert read.takes_any == any(each.kind is inspect.Parameter.VAR_KEYWORD for each in real.values())


def test_nothing_is_imported() -> None:
    program = (
        "import sys; from framework.recipe.signature import locate, signature\n"
        "signature(locate('transformers.get_cosine_schedule_with_warmup')); signature(locate('torch.nn.Linear'))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


SHAPES = '''\
from __future__ import annotations
import dataclasses
import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from .shapes import Base as Alias

class Base:
    def __init__(self, a: int, *, b: str = "x") -> None: ...
    @classmethod
    def load(cls, folder: str) -> "Base": ...
    @staticmethod
    def plain(x: int) -> int: ...

class Child(Base):
    """Inherits its constructor."""

class Open(Base):
    def __init__(self, c: int, *args: int, **kwargs: object) -> None: ...

@dataclass
class Parent:
    kind: ClassVar[str] = "k"
    first: int
    second: list[int] = field(default_factory=list)

@dataclasses.dataclass(frozen=True)
class Record(Parent):
    third: int = dataclasses.field(init=False, default=1)
    fourth: int = 3

class Pair(NamedTuple):
    left: int
    right: int = 0

class Nothing:
    pass

class Unknown(Missing):
    pass

class Level(enum.Enum):
    LOW = "low"

Size = tuple[int, int]
Renamed = Base
'''


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    package = tmp_path / "shapely_toy"
    package.mkdir()
    (package / "__init__.py").write_text("from .shapes import *\nfrom .shapes import Base as Exported\nimport os\n")
    (package / "shapes.py").write_text(SHAPES)
    monkeypatch.syspath_prepend(str(tmp_path))
    room.find_spec.cache_clear()
    room.read_module.cache_clear()
    return "shapely_toy.shapes"


@pytest.mark.parametrize(
    ("name", "parameters", "required", "takes_any"),
    [
        ("Base", ["a", "b"], {"a"}, False),
        ("Child", ["a", "b"], {"a"}, False),
        ("Open", ["c"], {"c"}, True),
        ("Record", ["first", "second", "fourth"], {"first"}, False),
        ("Pair", ["left", "right"], {"left"}, False),
        ("Nothing", [], set(), False),
        ("Unknown", [], set(), True),
        ("Renamed", ["a", "b"], {"a"}, False),
        ("Base.load", ["folder"], {"folder"}, False),
        ("Child.load", ["folder"], {"folder"}, False),
        ("Base.plain", ["x"], {"x"}, False),
    ],
)
def test_shapes_of_targets(shapes: str, name: str, parameters: list[str], required: set[str], takes_any: bool) -> None:
    read = signature(locate(f"{shapes}.{name}"))
    assert list(read.parameters) == parameters
    assert {key for key, each in read.parameters.items() if each.required} == required
    assert read.takes_any == takes_any


def test_re_exports_lead_to_the_definition(shapes: str) -> None:
    for name in ("Exported", "Base"):
        located = locate(f"shapely_toy.{name}")
        assert (located.module, located.qualname) == (shapes, "Base")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("no_such_thing.at_all", "there is no module 'no_such_thing'"),
        ("shapely_toy.shapes.Bass", "'shapely_toy.shapes' has no 'Bass'"),
        ("shapely_toy.shapes.Base.laod", "'Base' has no 'laod'"),
        ("shapely_toy.shapes", "is a module, not a class or function"),
        ("shapely_toy", "is a module, not a class or function"),
        ("not a name", "is not a dotted name"),
    ],
)
def test_what_is_not_there(shapes: str, target: str, said: str) -> None:
    with pytest.raises(NoSuchTarget, match=said):
        locate(target)


@pytest.mark.parametrize(
    ("annotation", "fits", "does_not"),
    [
        ("int", [1, -3], [1.5, True, "1", None, [1]]),
        ("float", [1, 1.5], [True, "fast", None]),
        ("bool", [True], [0, "yes"]),
        ("str", ["a"], [1, None]),
        ("'str'", ["a"], [1]),
        ("Path", ["a/b"], [1]),
        ("int | None", [1, None], ["a"]),
        ("Optional[str]", ["a", None], [1]),
        ("typing.Union[int, str]", [1, "a"], [1.5]),
        ("Literal['a', 2]", ["a", 2], ["b", 3]),
        ("list[int]", [[], [1, 2]], [["a"], 1, "ab", {}]),
        ("Sequence[float]", [[1, 2.5]], [[1, None]]),
        ("tuple[int, str]", [[1, "a"]], [[1], [1, 2]]),
        ("tuple[int, ...]", [[], [1, 2, 3]], [["a"]]),
        ("dict[str, int]", [{}, {"a": 1}], [{"a": "b"}, [1]]),
        ("Mapping[str, list[int]]", [{"a": [1]}], [{"a": 1}]),
        ("Annotated[int, 'metres']", [1], ["a"]),
        ("Callable[[int], int]", [{"_target_": "x"}], ["x"]),
        ("Base", [{"_target_": "x"}], [1, "a", {"a": 1}]),
        ("Level", ["LOW"], []),
        ("Size", [[1, 2]], [[1], "a"]),
        ("Any", [1, None, "a"], []),
        ("SomethingUnknown", [1, "a"], []),
        ("int", [{"_target_": "x"}], []),
    ],
)
def test_annotations(shapes: str, annotation: str, fits: list[object], does_not: list[object]) -> None:
    source = room.read_module(shapes)
    assert source is not None
    parsed = ast.parse(annotation, mode="eval").body
    assert [value for value in fits if misfit(value, parsed, source) is not None] == []
    assert [value for value in does_not if misfit(value, parsed, source) is None] == []


def test_what_was_frozen_is_let_go_at_exit() -> None:
    code = """
        import atexit, gc
        atexit.register(lambda: print(gc.get_freeze_count()))  # runs after what the module registers
        from framework.recipe.signature import read_module
        read_module("framework.recipe.problem")
        print(gc.get_freeze_count() > 0)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "0"]
