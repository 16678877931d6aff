from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from framework.evaluation.planning import TrajectoryScore
from framework.evaluation.results import MODEL, SIMULATION
from framework.evaluation.suite import Suite, headline
from framework.evaluation.table import results_table
from framework.recipe.figures import FIGURES, LOSS
from framework.scene.types import Boxes, SceneError, Trajectory
from framework.scene.world.generate import generate_scene
from framework.simulation.closed_loop import MEASURES
from tests.evaluation.scenes import make_scene, straight


@pytest.fixture(scope="module")
def suite() -> Suite:
    """The expert itself and the annotation, over scenes of the built-in world."""
    suite = Suite()
    for seed in range(12):
        scene = generate_scene(seed)
        suite.update(scene, "drive", "...", scene.future)
        suite.update(scene, "detect", "...", scene.boxes)
        for question in scene.questions:
            suite.update(scene, "answer", question.answer, question=question)
        suite.update(scene, "caption", scene.caption or "")
    return suite


def test_the_expert_is_perfect_in_the_world(suite: Suite) -> None:
    results = suite.compute()
    expert = results["drive"][MODEL]
    for metric in ("ade", "fde", "miss", "collision", "off_road", "parse_failure"):
        assert expert[metric]["all"] == 0.0, metric
    assert expert["comfortable"]["all"] > 0.5
    assert results["detect"][MODEL]["map_present"]["all"] == pytest.approx(1.0)
    assert results["answer"][MODEL]["accuracy"]["all"] == results["caption"][MODEL]["word_f1"]["all"] == 1.0


def test_baselines_are_in_the_table(suite: Suite) -> None:
    results = suite.compute()
    assert list(results["drive"]) == [MODEL, "constant velocity", "constant turn rate", "stay"]
    assert 0.0 < results["drive"]["constant velocity"]["ade"]["all"] < results["drive"]["stay"]["ade"]["all"]
    assert 0.0 < results["detect"]["perception"]["nds"]["all"] < results["detect"][MODEL]["nds"]["all"]
    assert 0.0 < results["answer"]["majority"]["accuracy"]["all"] < 1.0


def test_results_are_strict_json(suite: Suite) -> None:
    results = suite.compute()
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert "reason" not in results


def test_headline(suite: Suite) -> None:
    figures = headline(suite.compute())
    assert figures["drive/ade"] == 0.0
    assert "detect/nds" in figures
    assert all(isinstance(value, float) for value in figures.values())


def test_table_has_stages_and_baselines(suite: Suite) -> None:
    results = suite.compute()
    text = results_table({"untrained": {"held_out": results}, "broad": {"held_out": results}})
    lines = [line.split("  ")[0].strip() for line in text.splitlines()]
    for name in ("Driving, held_out", "untrained", "broad", "constant velocity", "stay", "perception", "majority"):
        assert name in lines
    assert "minADE" not in text
    widths = {len(line) for line in text.split("\n\n")[0].splitlines()}
    assert len(widths) == 1


def test_all_figures_are_known_to_the_check(suite: Suite) -> None:
    """`framework.recipe.figures` names what a search may optimise."""
    computed = headline(suite.compute())
    computed |= {f"{SIMULATION}/{name}": 0.0 for name in (*MEASURES, "reward", "reward_failure", "parse_failure")}
    computed |= {f"drive/{name}": 0.0 for name in TrajectoryScore().columns}
    known = [f"{section}/{name}" for section, names in FIGURES.items() for name in names]
    assert [figure for figure in computed if not any(fnmatchcase(figure, name) for name in known)] == []
    assert set(FIGURES) == {*suite.sections, SIMULATION, LOSS}
    assert {"loss", "token_accuracy", "scenes"} <= set(FIGURES[LOSS])


def test_table_of_nothing() -> None:
    assert results_table({}) == ""
    assert Suite().compute() == {}


def test_min_ade_needs_samples() -> None:
    suite, scene = Suite(), make_scene()
    assert scene.future is not None
    suite.update(scene, "drive", "", Trajectory(straight(speed=9.0)), samples=[scene.future])
    results = suite.compute()
    assert results["drive"][MODEL]["min_ade"]["all"] == 0.0
    assert "minADE" in results_table({"broad": {"held_out": results}})


def test_the_vehicle_counts() -> None:
    scene = make_scene()
    for length, hit in ((4.6, 0.0), (25.0, 1.0)):
        suite = Suite(vehicle_length=length)
        suite.update(scene, "drive", "", scene.future)
        assert suite.compute()["drive"][MODEL]["collision"]["all"] == hit


def test_the_preset_makes_suites() -> None:
    preset = OmegaConf.load(Path(__file__).parents[2] / "conf" / "suite" / "default.yaml")
    make = instantiate(preset)
    assert make() is not make()
    assert make().compute() == {}


@pytest.mark.parametrize(
    ("task", "decoded"),
    [("dirve", None), ("drive", Boxes(straight()[:0], ())), ("detect", Trajectory(straight())), ("answer", "yes")],
)
def test_what_cannot_be_judged(task: str, decoded: object) -> None:
    with pytest.raises(SceneError, match=f"hand-1: cannot judge task '{task}'"):
        Suite().update(make_scene(), task, "", decoded)  # type: ignore[arg-type]
