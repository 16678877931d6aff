"""The task that writes a model's predictions about every sample of a source: batched, sharded, resumable."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen
from lightning.pytorch import seed_everything

from framework.checkpoint.rank_group import RankGroup
from framework.data.render.sample import Sample
from framework.data.render.tasks import Task
from framework.data.shards.reader import ShardReader, open_reader
from framework.data.stream.mixture import Source
from framework.evaluation.examples import Example
from framework.evaluation.predictions import (
    box_column,
    displacement,
    part_file,
    plan_columns,
    read_parts,
    worst_rows,
    write_part,
    write_worst_page,
)
from framework.parallel.collectives import all_gather_objects
from framework.parallel.mesh import DataRank
from framework.parallel.sharding import unsharded
from framework.recipe.component import component
from framework.recipe.ranges import Batch, PositiveCount, Tokens
from framework.run.console import progress_bar, show_rows
from framework.run.files import read_json, write_json
from framework.run.folder import RunFolder, is_first_rank
from framework.run.layout import PREDICTIONS, PREDICTIONS_PAGE
from framework.run.phases import Phase, phase_ledger
from framework.scene.check import check_scene
from framework.scene.types import Scene, SceneError
from framework.training.ask import Asker, Reply, by_question, plan_and_boxes
from framework.training.build_model import build_model
from framework.training.evaluators.base import task_of
from framework.training.tasks.trained_run import TrainedRun

log = logging.getLogger(__name__)

PATIENCE_S = 1800.0
"""How long the other ranks wait for the first to write generated scenes, in seconds."""
IDENTITY_FILE = "_of.json"
"""What the parts in the folder are of; readers of parquet folders pass over names with an underscore."""
REFUSED_SHOWN = 50
"""Samples without a prediction that the page lists."""


@dataclass
class Work:
    """What a rank has done in this attempt."""

    samples: int = 0
    """Samples predicted."""
    generating_s: float = 0.0
    """Seconds in the model."""
    started: float = field(default_factory=time.perf_counter)
    """When it began."""

    def summary(self) -> dict[str, float]:
        """Samples, seconds, and seconds in the model."""
        return {"samples": self.samples, "s": time.perf_counter() - self.started, "generating_s": self.generating_s}


@component
class Predict:
    """Writes the predictions of a checkpoint of a run about every sample of a source, and a page of the worst.

    The model is asked as the run's own recipe renders prompts. Samples are divided into parts, which do not depend on
    the ranks; a rank predicts every so-many-th part and writes it whole. Run again, the task predicts the parts that
    are missing, on any number of ranks: every sample gets exactly one row. A sample that cannot be read or asked gets a
    row with the reason.

    Args:
        run: The folder of the run. Its newest checkpoint that verifies is used.
        checkpoint: The checkpoint's folder, RUN/checkpoints/step-N.attempt-A, instead of `run`.
        source: The samples.
        tasks: Token limit of an answer, by the task's name in the run's data. A scene is asked what it has the inputs
            for; answers need not be known.
        scenes: Number of samples, the first of the source; None for all.
        batch_size: Prompts answered at a time.
        part: Samples of a part: what a killed job loses at most.
        worst: Scenes that the page shows.
    """

    def __init__(
        self,
        source: Source,
        tasks: Annotated[Mapping[str, Tokens], MinLen(1)],
        run: str | None = None,
        checkpoint: str | None = None,
        scenes: PositiveCount | None = None,
        batch_size: Batch = 32,
        part: PositiveCount = 64,
        worst: PositiveCount = 12,
    ) -> None:
        self.trained = TrainedRun(run, checkpoint)
        self.source, self.tasks, self.scenes = source, tasks, scenes
        self.batch_size, self.part, self.worst = batch_size, part, worst

    def run(self, run: RunFolder) -> Path:
        """Predict what is missing; returns the folder of parts.

        Raises `ValueError` for a task that the run's data lacks, and where the folder holds predictions of something
        else.
        """
        phases = phase_ledger(run.path, run.attempt)
        phases.begin(Phase.INIT)
        name, train = self.trained.recipe(inputs=False)  # of the run's own data, none is read
        for task in self.tasks:
            task_of(train.data, task)
        train.parallel.start()
        checkpoint, ranks = self.trained.checkpoint(), RankGroup(PATIENCE_S)
        location = ranks.on_rank0(self.source.location)
        reader = open_reader(*location)
        total = int(reader.cache.index.samples.sum())
        count = total if self.scenes is None else min(total, self.scenes)
        folder = run.path / PREDICTIONS
        identity = {"weights": checkpoint.hash, "source": reader.cache.index.fingerprint(), "tasks": dict(self.tasks),
                    "scenes": count, "part": self.part}  # fmt: skip
        if clash := ranks.on_rank0(lambda: _claim(folder, identity)):
            raise ValueError(clash)
        seed_everything(run.seed, verbose=False)
        model = build_model(train.model, train.data.special_tokens, train.parallel)
        self.trained.load_weights(checkpoint, model)
        model.to(train.parallel.device)
        phases.begin(Phase.EVALUATE, checkpoint.step)
        dp_rank, work = train.parallel.data_rank(), Work()
        model.eval()
        with unsharded(model), train.parallel.as_trained():
            self._predict(Asker(model, train.data), reader, folder, count, dp_rank, work)
        done = all_gather_objects(work.summary(), dp_rank.group)
        if is_first_rank():
            of = {"run": name, "weights": f"step {checkpoint.step}, {checkpoint.folder.name}", "samples": count}
            self._report(run, folder, reader, train.data.tasks, of | _throughput(done))
        return folder

    def _predict(
        self, asker: Asker, reader: ShardReader, folder: Path, count: int, dp_rank: DataRank, work: Work
    ) -> None:
        """Write this rank's missing parts."""
        parts = math.ceil(count / self.part)
        mine = [number for number in range(parts) if number % dp_rank.world == dp_rank.rank]
        with progress_bar("parts predicted", len(mine)) as bar:
            for done, number in enumerate(mine, start=1):
                if not part_file(folder, number).is_file():
                    start = number * self.part
                    rows = self._rows(asker, reader, range(start, min(start + self.part, count)), work)
                    if dp_rank.is_writer:
                        write_part(folder, number, rows)
                if bar is not None:
                    bar.update(done)

    def _rows(self, asker: Asker, reader: ShardReader, samples: range, work: Work) -> list[dict[str, Any]]:
        """The rows of neighbouring samples."""
        started, rows, scenes = time.perf_counter(), list[dict[str, Any]](), list[Scene | None]()
        for number in samples:
            scene, row = _read(reader, number)
            scenes.append(scene)
            rows.append(row)
        replies: list[dict[str, Reply]] = [{} for _ in rows]
        for name, limit in self.tasks.items():
            for places, prompts in self._prompts(asker, name, scenes, rows):
                answers = asker.answer(prompts, limit)
                work.generating_s += sum(each.seconds for each in answers)
                for place, reply in zip(places, answers, strict=True):
                    replies[place][name] = reply
        seconds = (time.perf_counter() - started) / len(rows)
        for row, scene, by_task in zip(rows, scenes, replies, strict=True):
            row["seconds"] = seconds
            if scene is not None:
                row |= _predicted(asker, scene, by_task)
        work.samples += len(rows)
        return rows

    def _prompts(
        self, asker: Asker, name: str, scenes: Sequence[Scene | None], rows: Sequence[dict[str, Any]]
    ) -> Iterator[tuple[list[int], list[Sample]]]:
        """Yields batches of prompts with the places of their rows; a row tells why its scene cannot be rendered."""
        places, prompts = list[int](), list[Sample]()
        for place, scene in enumerate(scenes):
            if scene is None or not asker.can_ask(name, scene):
                continue
            try:
                prompts.append(asker.prompt(name, scene))
                places.append(place)
            except SceneError as error:
                rows[place]["error"] = str(error)
            if len(prompts) == self.batch_size:
                yield places, prompts
                places, prompts = [], []
        if prompts:
            yield places, prompts

    def _report(
        self, run: RunFolder, folder: Path, reader: ShardReader, tasks: Mapping[str, Task], of: dict[str, object]
    ) -> None:
        """Print what was done, and write the page of the worst."""
        rows = read_parts(folder)
        refused = [(row["sample"], row["error"]) for row in rows if row["error"] is not None]
        ades = [row["ade"] for row in rows if row["ade"] is not None]
        of |= {"without a prediction": len(refused)} | ({"ADE": f"{sum(ades) / len(ades):.2f} m"} if ades else {})
        shown = []
        for row in worst_rows(rows, self.worst):
            scene = reader.scene(*map(int, row["sample"].split("/")))
            example = Example(scene)
            for answer in row["answers"]:
                decoded = tasks[answer["task"]].decode(answer["text"], scene)
                example = example.with_answer(answer["task"], answer["text"], decoded)
            shown.append((row["ade"], example))
        page = run.path / PREDICTIONS_PAGE
        write_worst_page(page, f"Predictions of {run.name}", run.identity() | of, shown, refused[:REFUSED_SHOWN])
        show_rows({name: str(value) for name, value in of.items()} | {"parts": str(folder), "page": str(page)})


def _claim(folder: Path, identity: Mapping[str, Any]) -> str | None:
    """Record what the parts in `folder` are of. Returns what is wrong where they are of something else."""
    known = read_json(folder / IDENTITY_FILE)
    if known is None:
        write_json(folder / IDENTITY_FILE, identity)
        return None
    if differing := [name for name in identity if known.get(name) != identity[name]]:
        return (
            f"{folder}: holds predictions with other {', '.join(differing)}; give run.folder a new folder, or delete "
            "this one"
        )
    return None


def _read(reader: ShardReader, number: int) -> tuple[Scene | None, dict[str, Any]]:
    """A sample's scene and the start of its row; None with the reason where it cannot be used."""
    shard, place = reader.cache.index.locate(number)
    row: dict[str, Any] = {"sample": f"{shard}/{place}", "answers": [], "error": None, "ade": None}
    try:
        scene = reader.scene(shard, place)
    except SceneError as error:
        return None, row | {"error": str(error)}
    row |= {"scene": scene.id, "kind": scene.kind, "command": scene.command}
    if problems := check_scene(scene):
        return None, row | {"error": "; ".join(problems)}
    return scene, row


def _predicted(asker: Asker, scene: Scene, replies: Mapping[str, Reply]) -> dict[str, Any]:
    """The columns of what was answered about a scene."""
    plan, boxes = plan_and_boxes(replies.values())
    answers = [row for name, reply in replies.items() for row in _answers(asker, scene, name, reply)]
    return plan_columns(scene, plan) | {
        "boxes": box_column(boxes), "answers": answers, "ade": displacement(scene, plan),
    }  # fmt: skip


def _answers(asker: Asker, scene: Scene, name: str, reply: Reply) -> Iterator[dict[str, Any]]:
    """The entries of the column `answers` of one task: one, or one a question."""
    for text, question in by_question(asker.data.tasks[name], name, scene, reply.text):
        yield {
            "task": name,
            "question": None if question is None else question.question,
            "topic": None if question is None else question.topic,
            "truth": None if question is None else question.answer,
            "text": text,
            "parsed": reply.decoded is not None,
            "complete": reply.complete,
            "tokens": len(reply.tokens),
            "logprob": reply.logprob,
            "probability": math.exp(reply.logprob / max(len(reply.tokens), 1)),
            "seconds": reply.seconds,
        }


def _throughput(done: Sequence[Mapping[str, float]]) -> dict[str, object]:
    """What this attempt did: samples a second over all ranks, and which share of its time the model generated."""
    samples, longest = sum(each["samples"] for each in done), max(each["s"] for each in done)
    if not samples:
        return {"this attempt": "nothing was missing"}
    share = sum(each["generating_s"] for each in done) / sum(each["s"] for each in done)
    return {"this attempt": f"{samples:.0f} samples, {samples / longest:.2f}/s, {100 * share:.0f} % of it in the model"}
