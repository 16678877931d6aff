"""Predicted scenes a second, next to loops of transformers' own `generate` on the exported model.

    python -m tools.bench.predictions RUN --scenes 64

RUN is a run's or an exported folder. All render the same prompts about the same scenes of the built-in world. Ours
answers in batches, each answer within its grammar, as `recipe=predict` does; transformers answers one by one, as its
examples do, and in the same batches, without a grammar and as many tokens as ours. The ways take turns, batch by batch.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from framework.data.render.collate import collate
from framework.data.render.sample import Sample
from framework.model.hf_export import export
from framework.scene.world.generate import generate_scene
from framework.training.ask import Asker
from framework.training.tasks.exported import load_trained
from tools.bench.latency import FIRST_SCENE, KINDS, PLAIN_KEYS, Clock, now
from tools.bench.machine import write_result

TOKENS = 1024


@torch.no_grad()
def _plain(plain: Any, asker: Asker, prompts: list[Sample], length: int) -> None:
    """One batch by transformers."""
    special = asker.data.renderer(asker.model.processor).special_ids
    batch = collate(prompts, special, side="left")
    given = {key: batch[key] for key in PLAIN_KEYS if key in batch}  # type: ignore[literal-required]
    plain.generate(**given, max_new_tokens=length, min_new_tokens=length, do_sample=False)


def measure(run: Path, scenes: int, batch_size: int, task: str) -> dict[str, Any]:
    """Scenes a second by way, the ratios to ours, and tokens of an answer."""
    _, train, model = load_trained(run)
    asker = Asker(model, train.data)
    with tempfile.TemporaryDirectory() as folder:
        export(model, Path(folder))
        plain = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    seconds = dict.fromkeys(("ours", "transformers, batches", "transformers, one by one"), 0.0)
    tokens = 0
    for start in range(-batch_size, scenes, batch_size):  # the first batch warms up
        numbers = range(start + batch_size, min(start + 2 * batch_size, scenes + batch_size))
        made = [generate_scene(FIRST_SCENE + each, KINDS[each % len(KINDS)]) for each in numbers]
        began = now()
        replies = asker.answer([asker.prompt(task, scene) for scene in made], TOKENS)
        marks = [now()]
        lengths = [len(reply.tokens) for reply in replies]
        _plain(plain, asker, [asker.prompt(task, scene) for scene in made], max(lengths))
        marks.append(now())
        for scene, length in zip(made, lengths, strict=True):
            _plain(plain, asker, [asker.prompt(task, scene)], length)
        marks.append(now())
        if start >= 0:
            tokens += sum(lengths)
            for way, before, after in zip(seconds, [began, *marks], marks, strict=False):
                seconds[way] += after - before
    rates = {way: round(scenes / taken, 2) for way, taken in seconds.items()}
    ratios = {way: round(taken / seconds["ours"], 2) for way, taken in seconds.items() if way != "ours"}
    return {"scenes_per_s": rates, "times_as_fast_as": ratios, "tokens": round(tokens / scenes, 1), "task": task}


def main() -> None:
    """Measure, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's or an exported folder")
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--task", default="drive")
    parser.add_argument("--core-time", action="store_true", help="as in tools.bench.latency")
    parser.add_argument("--out", type=Path, default=Path("tools/bench/results/predictions.json"))
    given = parser.parse_args()
    Clock.core_time = given.core_time
    figures = measure(given.run, given.scenes, given.batch_size, given.task)
    write_result(given.out, "predictions", vars(given) | {"run": given.run.name}, figures)


if __name__ == "__main__":
    main()
