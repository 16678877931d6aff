"""Only what is declared as a component may be named by a recipe."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from framework.recipe.allow import TargetNotAllowed, verify
from framework.recipe.catalogue import Catalogue
from framework.recipe.check import check
from framework.recipe.signature import declares_component, locate
from tests.processes import REPOSITORY

TARGET = re.compile(r"_target_:\s*(framework\.[\w.]+)")


def test_every_target_of_the_presets_is_declared() -> None:
    files = [*REPOSITORY.glob("conf/**/*.yaml"), *REPOSITORY.glob("recipes/*.yaml")]
    targets = {name for file in files for name in TARGET.findall(file.read_text())}
    assert len(targets) > 50
    assert [name for name in sorted(targets) if not declares_component(locate(name))] == []


def test_a_recipe_may_describe_the_sensors_of_a_closed_loop() -> None:
    mounts = "framework.scene.world.rig"
    front = f"{{_target_: {mounts}.CameraMount, name: front, width: 96, height: 64, field_of_view: 1.2, yaw: 0.0}}"
    others = f"lidar: {{_target_: {mounts}.LidarMount, rings: 4}}, radar: {{_target_: {mounts}.RadarMount}}"
    rig = f"+evals.closed_loop.rig={{_target_: {mounts}.Rig, cameras: [{front}], {others}}}"
    _, problems = check(["recipe=rl_dapo", "scale=tiny", "evals=[closed_loop]", rig])
    assert [str(problem) for problem in problems if problem.key.startswith("evals.closed_loop")] == []
    for name in ("Rig", "CameraMount", "LidarMount", "RadarMount"):
        verify(f"{mounts}.{name}", ())


@pytest.mark.fault("a recipe that runs code")
@pytest.mark.attack("target", "a function of the framework that starts, submits or writes", "refused, unimported")
@pytest.mark.parametrize(
    "target",
    [
        "framework.launch.supervisor.main.main",
        "framework.launch.submit.submit",
        "framework.run.files.write_text",
        "framework.run.files.append_line",
        "framework.recipe.instantiate.instantiate",
        "framework.recipe.component.component",
    ],
)
def test_a_function_of_the_framework_is_no_component(catalogue: Catalogue, target: str) -> None:
    _, problems = check(["recipe=toy", f"+task.optimizer={{_target_: {target}}}"], catalogue)
    assert [problem.key for problem in problems if "is no component" in problem.message] == ["task.optimizer._target_"]
    with pytest.raises(TargetNotAllowed, match="is no component"):
        verify(target, ())


@pytest.mark.attack("target", "a class that its plugin does not declare", "refused")
def test_an_undeclared_class_of_a_plugin_is_refused(catalogue: Catalogue, recipe: Callable[[str, str], str]) -> None:
    file = catalogue.root / "plugins" / "toy_tasks" / "tasks.py"
    file.write_text(file.read_text().replace("@component\n", ""))
    _, problems = check(["recipe=toy"], catalogue)
    assert any("toy_tasks.tasks.Task is no component" in problem.message for problem in problems)


@pytest.mark.attack("target", "a class declared by a decorator of one's own", "refused")
def test_a_decorator_of_the_same_name_declares_nothing(catalogue: Catalogue) -> None:
    file = catalogue.root / "plugins" / "toy_tasks" / "tasks.py"
    own = "def component(target):\n    return target\n"
    file.write_text(file.read_text().replace("from framework.recipe.component import component\n", own))
    _, problems = check(["recipe=toy"], catalogue)
    assert any("is no component" in problem.message for problem in problems)


@pytest.mark.fault("a recipe that runs code")
@pytest.mark.attack("plugin", "a folder named as an installed or standard module", "refused")
@pytest.mark.parametrize("name", ["shutil", "yaml", "torch", "framework"])
def test_a_plugin_cannot_open_an_installed_module(catalogue: Catalogue, name: str) -> None:
    folder = catalogue.root / "plugins" / name
    folder.mkdir()
    (folder / "__init__.py").touch()
    _, problems = check(["recipe=toy", f"plugins=[toy_tasks,{name}]"], catalogue)
    assert any(f"bears the name of an installed or standard module, {name}" in each.message for each in problems)


@pytest.mark.attack("target", "any function of the framework", "none is a component")
def test_components_are_classes() -> None:
    """A function that is declared would be called with whatever a recipe gives it."""
    for file in Path(REPOSITORY / "framework").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert "component" not in {ast.unparse(each) for each in node.decorator_list}, f"{file}: {node.name}"
