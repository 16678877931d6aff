"""An exported folder is served as the run itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from framework.recipe.problem import RecipeError
from framework.run.folder import RunFolder
from framework.run.layout import EXPORTED_RECIPE_FILE
from framework.scene.world.generate import generate_scene
from framework.serving.serve import parse
from framework.training.ask import Asker
from framework.training.tasks.export import Export
from framework.training.tasks.exported import load_trained

RUN = Path(__file__).resolve().parents[1] / "fixtures" / "old_tree" / "runs" / "stopped_in_rl"


def answers(folder: Path) -> list[object]:
    """The weights' name, and what the model answers to the prompts of three tasks."""
    name, train, model = load_trained(folder)
    asker, scene = Asker(model, train.data), generate_scene(3, "curve")
    prompts = [asker.prompt(task, scene) for task in ("drive", "detect", "answer")]
    replies = asker.answer(prompts, 48)
    return [name, *((reply.text, reply.logprob, reply.tokens) for reply in replies)]


@pytest.mark.slow
def test_an_exported_folder_answers_as_its_run_wherever_it_lies(tmp_path: Path) -> None:
    Export(str(tmp_path / "export"), run=str(RUN)).run(RunFolder(tmp_path / "task", 1, "export", 0))
    moved = shutil.move(tmp_path / "export", tmp_path / "moved")
    assert answers(Path(moved)) == answers(RUN)
    assert parse([f"run={moved}"], {}).run == Path(moved)
    (Path(moved) / EXPORTED_RECIPE_FILE).unlink()
    with pytest.raises(RecipeError, match=f"nor an exported folder with its {EXPORTED_RECIPE_FILE}"):
        parse([f"run={moved}"], {})
