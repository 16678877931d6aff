"""A small tree of presets and recipes, so that these tests do not depend on the project's own."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from framework.recipe.catalogue import Catalogue
from tests.recipe.own_recipes import Written

REPOSITORY = Path(__file__).resolve().parents[2]

FILES = {
    "conf/config.yaml": """\
        # The base.
        defaults:
          - _self_
          - optimizer: adamw
          - recipe: ???
          - scale: full
        run:
          name: ???
          seed: 0
          folder: ${paths.runs}/${run.name}
        paths:
          runs: runs
        plugins: []
        """,
    "conf/optimizer/adamw.yaml": """\
        # Adam with decoupled weight decay.
        _target_: torch.optim.AdamW
        _partial_: true
        lr: 0.001
        """,
    "conf/optimizer/sgd.yaml": """\
        # Plain gradient descent.
        _target_: torch.optim.SGD
        _partial_: true
        lr: 0.1
        """,
    "conf/scale/full.yaml": """\
        # @package _global_
        # The recipe as it is.
        """,
    "conf/scale/tiny.yaml": """\
        # @package _global_
        # A smoke run.
        defaults:
          - override /optimizer: sgd
        run:
          seed: 7
        """,
    "plugins/toy_tasks/__init__.py": '"""A plugin for the tests."""\n',
    "plugins/toy_tasks/tasks.py": '''\
        """Tasks that need no torch."""

        from collections.abc import Mapping, Sequence
        from os import system
        from pathlib import Path
        from typing import Any, Literal

        from framework.recipe.component import component
        from framework.recipe.paths import InputPath


        @component
        class Task:
            def __init__(
                self,
                out: str,
                steps: int,
                optimizer: Any = None,
                mode: Literal["train", "evaluate"] = "train",
                shards: InputPath | None = None,
                betas: tuple[float, float] = (0.9, 0.99),
                stages: Sequence[Mapping[str, Any]] = (),
            ) -> None:
                if steps < 0:
                    raise ValueError(f"steps must not be negative: {steps}")
                if Path(out).suffix == ".csv":  # what the check cannot find out: it calls nothing
                    raise ValueError(f"out must not be a table: {out}")
                self.out, self.steps, self.stages = out, steps, stages

            def run(self, run: object = None) -> None:
                with open(self.out, "a") as file:
                    file.write(f"{self.steps}\\n")
        ''',
    "plugins/toy_tasks/conf/task/toy.yaml": """\
        # Appends its steps to a file.
        _target_: toy_tasks.tasks.Task
        out: steps.txt
        steps: 1
        """,
    "recipes/toy.yaml": """\
        # @package _global_
        # Runs the toy.
        defaults:
          - /task: toy
          - _self_
        plugins: [toy_tasks]
        task:
          steps: 3
          optimizer: ${optimizer}
        """,
    "recipes/toy_fast.yaml": """\
        # @package _global_
        # The toy with a higher learning rate.
        defaults:
          - toy
          - _self_
        optimizer:
          lr: 0.01
        """,
}


@pytest.fixture(autouse=True)
def _forget_the_toy() -> Iterator[None]:
    yield
    for name in [name for name in sys.modules if name.startswith("toy_tasks")]:
        del sys.modules[name]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The root of the small tree."""
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text))
    return tmp_path


@pytest.fixture
def catalogue(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    """The small tree's catalogue; the working directory is its root, and its plugin importable for this test alone."""
    from framework.recipe import signature

    monkeypatch.chdir(tree)
    monkeypatch.syspath_prepend(str(tree / "plugins"))
    signature.find_spec.cache_clear()
    signature.read_module.cache_clear()
    return Catalogue(tree)


@pytest.fixture
def recipe(tree: Path) -> Callable[[str, str], str]:
    """Write a recipe below the small tree and return its name."""

    def write(name: str, text: str) -> str:
        (tree / "recipes" / f"{name}.yaml").write_text("# @package _global_\n" + dedent(text))
        return name

    return write


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Write a recipe next to the project's own, and return the catalogue of all."""
    for folder in ("conf", "recipes"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)

    def write(name: str, text: str) -> Catalogue:
        (tmp_path / "recipes" / f"{name}.yaml").write_text(text)
        return Catalogue(tmp_path)

    return write
