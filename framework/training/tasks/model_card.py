"""The model card of an export, written from the run: what it was trained on and how, what was measured, how to load it.

The front matter is Hugging Face's (huggingface.co/docs/hub/model-cards): licence, base model, and a `model-index` of
the figures.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from framework.checkpoint.history import Checkpoint
from framework.evaluation.suite import headline
from framework.run.files import read_json
from framework.run.layout import CODE_FILE, EVALUATED_FILE, RESULTS_FILE
from framework.training.tasks.train import Train
from framework.training.tasks.trained_run import TrainedRun

UNKNOWN_LICENCE = "see `provenance` of its scenes"
"""The licence of a source whose code does not name one."""
LOADING = """\
```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)
message = {{"role": "user", "content": [{{"type": "image"}}, {{"type": "text", "text": "{text}"}}]}}
prompt = processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
inputs = processor(text=[prompt], images=[image], sensors=[{{{sensors}}}], return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=64)
```"""
"""How to ask the model; with names of its sensors."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What people decide of a published model."""

    licence: str
    """Licence of the weights, by its SPDX name; `other` until somebody decides."""
    intended_use: str
    """What the model is for, and what it is not for."""


def model_card(trained: TrainedRun, name: str, train: Train, checkpoint: Checkpoint, terms: Terms) -> str:
    """The card's text.

    Args:
        trained: The run.
        name: Its name.
        train: Its task.
        checkpoint: What was exported.
        terms: What people decide.
    """
    recipe = trained.stored_recipe()
    figures = _figures(trained, checkpoint)
    backbone = recipe["task"]["model"]["backbone"].get("name")
    front = {
        "license": terms.licence,
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["driving", "vision-language-action"],
        **({"base_model": backbone} if backbone else {}),
        "model-index": [{"name": name, "results": list(_results(figures))}],
    }
    code = read_json(trained.folder / CODE_FILE) or {}
    parts = {
        "Intended use": terms.intended_use,
        "Training data": _table(("stage", "stream", "source", "tasks", "licence of the data"), _streams(train)),
        "Training": _table(("stage", "steps", "kind", "objective", "learning rate"), _stages(train)),
        "Figures": _table(("evaluation", "metric", "value"), _values(figures)) if figures else "None measured.",
        "Sensors": _table(("sensor", "placeholder", "rows"), _sensors(train)) + _example(train),
        "Origin": _table(("", ""), [
            ("run", name), ("checkpoint", f"step {checkpoint.step}, {checkpoint.hash}"),
            ("seed", str(recipe["run"]["seed"])), ("code", str(code.get("sha"))),
            ("licence of the weights", terms.licence), ("backbone", str(backbone or "random weights")),
        ]),
    }  # fmt: skip
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items())
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n# {name}\n\n{body}\n"


def _figures(trained: TrainedRun, checkpoint: Checkpoint) -> dict[str, dict[str, float]]:
    """The figures of the checkpoint's weights by evaluation, without their parts by class, topic or quantity."""
    results = read_json(trained.folder / RESULTS_FILE) or {}
    figures = {}
    for stage, evaluations in (read_json(trained.folder / EVALUATED_FILE) or {}).items():
        for name, of in evaluations.items():
            if of["weights"] == checkpoint.hash and name in results.get(stage, {}):
                values = headline(results[stage][name])
                figures[name] = {key: values[key] for key in values if key.count("/") == 1 and "/max_" not in key}
    return figures


def _results(figures: Mapping[str, Mapping[str, float]]) -> Iterator[dict[str, Any]]:
    """The entries of the `model-index`."""
    for evaluation, values in figures.items():
        metrics = [{"type": metric, "value": round(value, 5)} for metric, value in values.items()]
        if metrics:
            yield {"task": {"type": "image-text-to-text"}, "dataset": {"name": evaluation, "type": evaluation},
                   "metrics": metrics}  # fmt: skip


def _values(figures: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, ...]]:
    for evaluation, values in figures.items():
        for metric, value in values.items():
            yield evaluation, metric, f"{value:.4g}"


def _streams(train: Train) -> Iterator[tuple[str, ...]]:
    for name, stage in train.curriculum.stages.items():
        for stream, part in stage.mixture.parts.items():
            tasks = ", ".join(f"{task} {weight:g}" for task, weight in part.weights.items())
            datasets = [each for each in (getattr(part.source, "datasets", None) or {}).values() if each is not None]
            sources = datasets or [part.source]
            kinds = ", ".join(type(each).__name__ for each in sources)
            yield name, stream, kinds, tasks, "; ".join(dict.fromkeys(map(_licence, sources)))


def _licence(source: object) -> str:
    """The licence that the module of a dataset, or the one that reads its files, names."""
    module = type(source).__module__
    modules = (vars(sys.modules.get(name, sys)) for name in (module, f"{module.rpartition('.')[0]}.info"))
    return next((str(names["LICENCE"]) for names in modules if "LICENCE" in names), UNKNOWN_LICENCE)


def _stages(train: Train) -> Iterator[tuple[str, ...]]:
    for each in train.curriculum.stage_ranges():
        stage = each.stage
        objective = (
            type(stage.traced_loss()).__name__ if type(stage).__name__ == "SupervisedStage" else "policy gradient"
        )
        yield each.name, str(each.end - each.start), type(stage).__name__, objective, f"{stage.lr:g}"


def _sensors(train: Train) -> Iterator[tuple[str, ...]]:
    for name, sensor in train.data.sensors.items():
        yield (
            name,
            f"`{sensor.placeholder}`",
            f"{sensor.channels} values: {(type(sensor).__doc__ or '').splitlines()[0]}",
        )


def _example(train: Train) -> str:
    sensors = train.data.sensors
    text = "".join(sensor.placeholder for sensor in sensors.values())
    drive = next((task for name, task in train.data.tasks.items() if name == "drive"), None)
    asked = getattr(getattr(drive, "codec", None), "instruction", "Describe the scene in one sentence.")
    rows = ", ".join(f'"{name}": {name}_rows' for name in sensors)
    loading = LOADING.format(text=f"{text}Command: follow. {asked}", sensors=rows)
    needs = "Pictures and clips need Pillow and torchvision next to torch and transformers; text and sensors do not."
    return f"\n\nRows are in the ego frame and SI units, as the training data gave them. {needs}\n\n{loading}"


def _table(headings: tuple[str, ...], rows: Any) -> str:
    """A table in Markdown; what holds a bar is escaped."""
    lines = [headings, ("---",) * len(headings), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
