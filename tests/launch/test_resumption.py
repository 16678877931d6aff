"""What a run's recipe needs of earlier runs before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.__main__ import main
from framework.launch.resumption import weights_problems
from framework.recipe.compose import compose
from framework.run.layout import CHECKPOINTS, COMMIT, checkpoint_name


@pytest.mark.slow
def test_a_run_whose_weights_are_not_there_is_warned_of_and_does_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, own = tmp_path / "first", tmp_path / "own"
    words = ["recipe=rl_dapo", f"init_from={first}", f"run.folder={own}"]
    said = f"command line init_from: {first} has no checkpoint to start from: train that run first"
    assert main(["check", *words]) == 0
    assert capsys.readouterr().out.startswith(f"warning: {said}")
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(said)
    assert not own.exists()
    assert main(["check", "recipe=rl_dapo", f"paths.runs={tmp_path}"]) == 0
    assert "train that run first (python -m framework recipe=supervised), or write init_from=FOLDER of another run" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("folder", ["first", "own"])
def test_weights_are_there_once_either_run_has_saved_some(folder: str, tmp_path: Path) -> None:
    recipe = compose(["recipe=rl_dapo", f"init_from={tmp_path / 'first'}", f"run.folder={tmp_path / 'own'}"])
    (problem,) = weights_problems(recipe, warning=False)
    assert not problem.warning
    saved = tmp_path / folder / CHECKPOINTS / checkpoint_name(3, 1)
    saved.mkdir(parents=True)
    (saved / COMMIT).write_text("")
    assert weights_problems(recipe, warning=False) == []
