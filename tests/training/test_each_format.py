"""A tree of one format alone: converted, shown, trained on for 20 steps and evaluated on its held-out part.

The scenes are those that the readers give, which `tests/data/sources/` compares with each format's own library.
`test_formats.py` trains one run on several formats together.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from framework.__main__ import main
from framework.data.shards.summary import Summary
from framework.data.stream.ledger import read_attempts
from framework.run.layout import LEDGER, METRICS_FILE, RESULTS_FILE
from framework.scene.types import Scene
from tests.data.scenes import same
from tests.data.sources.datasets import EVERY
from tests.data.sources.formats import FORMATS, Format
from tests.processes import REPOSITORY, framework, run
from tools.convert.__main__ import main as convert
from tools.shards import scenes

STEPS = 20
ANSWER_TOKENS = {"drive": 64, "detect": 20, "answer": 8}
"""The most tokens of an answer, by task; a random model ends none by itself."""
PRESETS = {path.stem for path in (REPOSITORY / "conf" / "sources").iterdir()}
NEEDED = {"recordings_held_out", "conversations_held_out", "world_hard_held_out"}
SOURCES = sorted(NEEDED | (PRESETS - {f"{name}_held_out" for name in PRESETS}))
"""The sources of a recipe before it names another; the held-out logs of a single format are none of them."""


@dataclass(frozen=True)
class Converted:
    """The scenes of a split, as `tools.convert` wrote them."""

    summary: Summary
    scenes: list[Scene]

    @property
    def logs(self) -> set[str]:
        """The logs that the scenes are of; a conversation is one."""
        return {log_of(scene) for scene in self.scenes}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FORMATS)
def test_a_tree_as_downloaded_trains_and_is_evaluated_on_its_held_out_logs(name: str, tmp_path: Path) -> None:
    form = FORMATS[name]
    tree = tmp_path / "tree"
    form.write(tree)
    parts = {split: _convert(name, split, form, tree, tmp_path / split) for split in ("train", "held_out")}
    trained, held_out = parts["train"], parts["held_out"]
    assert trained.summary.skipped == held_out.summary.skipped == []
    assert trained.logs
    assert held_out.logs
    assert trained.logs & held_out.logs == set()
    if name in EVERY:
        found = [log for log in EVERY[name].find_logs(str(tree)) if log.split == "train"]
        frames = [frame for log in found for frame in log.frames]
        assert same(tuple(trained.scenes), tuple(EVERY[name].read_scene(frame) for frame in frames))

    words = _recipe(name, form, tree, tmp_path)
    page = tmp_path / "page.html"
    assert main(["show-data", f"source={name}", "scenes=12", f"page={page}", *words]) == 0
    assert all(f"<b>{task}</b>" in page.read_text() for task in form.tasks)

    done = run(framework(*words))
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (tmp_path / "runs").iterdir()
    ((stage, (attempt,)),) = read_attempts(folder / LEDGER).items()
    assert attempt.rows["refused"].sum() == 0
    consumed = {log_of(trained.scenes[sample]) for sample in attempt.rows["sample"].tolist()}
    assert consumed <= trained.logs
    with (folder / METRICS_FILE).open() as file:
        losses = [float(row["value"]) for row in csv.DictReader(file) if row["name"] == "loss"]
    assert len(losses) == STEPS
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    results = json.loads((folder / RESULTS_FILE).read_text())[stage]
    assert results.keys() == {form.suite}
    assert form.tasks == ("converse",) or results[form.suite].keys() >= set(form.tasks)


def log_of(scene: Scene) -> str:
    """The log that a scene is of; a conversation is one by itself."""
    return scene.provenance.get("log", scene.id)


def _convert(name: str, split: str, form: Format, tree: Path, out: Path) -> Converted:
    words = ["--source", name, "--split", split, "--input", str(tree), "--out", str(out), *form.columns]
    assert convert(words) == 0
    summary = Summary.read(out / "manifest.json")
    return Converted(summary, list(scenes(out, range(summary.records))))


def _recipe(name: str, form: Format, tree: Path, folder: Path) -> list[str]:
    """Words that train on a source alone, with all its cameras, and evaluate on its held-out part."""
    words = ["scale=tiny", f"paths.{form.path}={tree}", f"paths.cache={folder}/cache", f"paths.runs={folder}/runs",
             "data.cameras=null", "data.max_length=4000", "data.global_batch=4", "data.micro_batch=4",
             f"stage.steps={STEPS}", f"curriculum.max_steps_per_stage={STEPS}", f"checkpoint.every={STEPS}",
             *form.columns]  # fmt: skip
    if form.suite == "conversations":
        return ["recipe=sft_mixed", *words, "~stage.data.recordings", "~evals.recordings"]
    absent = [task for task in ANSWER_TOKENS if task not in form.tasks]
    limits = ",".join(f"{task}: {ANSWER_TOKENS[task]}" for task in form.tasks)
    return [
        "recipe=sft_drive", *words, "codecs/boxes=text", f"sources=[{','.join([*SOURCES, f'{name}_held_out'])}]",
        f"stage.data.recordings.source=${{sources.{name}}}", f"evals.recordings.source=${{sources.{name}_held_out}}",
        *(f"~stage.data.recordings.tasks.{task}" for task in absent),
        *(f"~evals.recordings.tasks.{task}" for task in absent),
        f"evals.recordings.tasks={{{limits}}}", "evals.recordings.scenes=22",
    ]  # fmt: skip
