"""Only allowed targets are imported; a failing constructor names its key and file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from framework.recipe.allow import FUNCTIONS, TargetNotAllowed, verify
from framework.recipe.catalogue import Catalogue
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.recipe.problem import RecipeError

Write = Callable[[str, str], str]


def test_a_task_with_plain_containers(catalogue: Catalogue) -> None:
    task = instantiate(compose(["recipe=toy", "task.stages=[{a: 1}]"], catalogue))
    assert task.steps == 3
    assert type(task.stages) is list
    assert type(task.stages[0]) is dict


def test_a_failing_constructor_names_key_and_file(catalogue: Catalogue, recipe: Write) -> None:
    recipe("table", "defaults: [toy, _self_]\ntask:\n  out: a.csv\n")
    with pytest.raises(RecipeError) as caught:
        instantiate(compose(["recipe=table"], catalogue))
    assert str(caught.value) == (
        "plugins/toy_tasks/conf/task/toy.yaml:2 task: toy_tasks.tasks.Task could not be constructed: "
        "ValueError: out must not be a table: a.csv (raised in tasks.py:27)"
    )


def test_what_reads_no_data_needs_no_inputs(catalogue: Catalogue, recipe: Write) -> None:
    recipe("elsewhere", "defaults: [toy, _self_]\ntask:\n  shards: nowhere\n")
    composition = compose(["recipe=elsewhere"], catalogue)
    with pytest.raises(RecipeError, match="there is no file or folder 'nowhere'"):
        instantiate(composition)
    assert instantiate(composition, inputs=False).steps == 3
    recipe("wrong", "defaults: [toy, _self_]\ntask:\n  shards: nowhere\n  steps: many\n")
    with pytest.raises(RecipeError, match=r"task\.steps") as caught:
        instantiate(compose(["recipe=wrong"], catalogue), inputs=False)
    assert len(caught.value.problems) == 1


@pytest.mark.attack("target", "a target that the static check was fooled about", "refused before anything is built")
def test_nothing_is_instantiated_before_every_target_is_verified(
    catalogue: Catalogue, recipe: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe(
        "sly", "defaults: [toy, _self_]\ntask:\n  stages:\n    - _target_: toy_tasks.tasks.system\n      command: x\n"
    )
    import framework.recipe.instantiate as room

    monkeypatch.setattr(room, "findings", lambda composition: [])  # as if the static check had been fooled
    with pytest.raises(RecipeError, match=r"recipes/sly.yaml:5 task.stages.0._target_: cannot be used: .*posix.system"):
        instantiate(compose(["recipe=sly"], catalogue))


@pytest.mark.attack("target", "what loads, evaluates or runs in other packages", "refused, unimported")
@pytest.mark.parametrize(
    "target",
    [
        "torch.load",
        "os.system",
        "builtins.eval",
        "torch.hub.load",
        "numpy.load",
        "hydra.utils.get_method",
        "subprocess.run",
    ],
)
def test_foreign_targets_are_refused_unimported(target: str) -> None:
    with pytest.raises(TargetNotAllowed, match="not allowed"):
        verify(target, [])


@pytest.mark.attack("target", "another name of a forbidden function, private names", "refused by the definition")
def test_a_re_export_is_judged_by_its_definition(catalogue: Catalogue) -> None:
    with pytest.raises(TargetNotAllowed, match=r"really posix\.system"):
        verify("toy_tasks.tasks.system", ["toy_tasks"])
    with pytest.raises(TargetNotAllowed, match="neither a class nor a function"):
        verify("toy_tasks.tasks.Literal", ["toy_tasks"])
    with pytest.raises(TargetNotAllowed, match="private"):
        verify("framework.recipe.allow._import", [])
    with pytest.raises(TargetNotAllowed, match="plugins"):
        verify("toy_tasks.tasks.Task", [])


@pytest.mark.parametrize(
    "target", ["torch.optim.AdamW", "torch.nn.Linear", "torch.optim.lr_scheduler.CosineAnnealingLR", *sorted(FUNCTIONS)]
)
def test_the_named_libraries_are_allowed(target: str) -> None:
    assert callable(verify(target, []))


@pytest.mark.attack("target", "neighbours of the library classes that are allowed", "refused")
@pytest.mark.parametrize("target", ["torch.nn.functional.linear", "torch.nn.init.normal_", "transformers.AutoModel"])
def test_their_neighbours_are_not(target: str) -> None:
    with pytest.raises(TargetNotAllowed):
        verify(target, [])


def test_the_toy_runs(catalogue: Catalogue, tree: Path) -> None:
    instantiate(compose(["recipe=toy"], catalogue)).run()
    assert (tree / "steps.txt").read_text() == "3\n"
