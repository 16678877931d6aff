"""Time of one request at a time: to the plan and to the whole answer, by sensors and codec, part by part.

    python -m tools.bench.latency RUN --scenes 100

RUN is a run's or an exported folder. A scene is answered alternately one token a pass; with guessed tokens (see
`framework.model.speculate`); with these and the features of images that an earlier question about the scene showed (see
`framework.model.vision_cache`); and by transformers' own `generate` on the exported model, which has no grammar and is
told to write as many tokens. The plan comes first; the whole answer adds the boxes. Waypoints, which the run was not
trained to write, are written by its architecture with random weights: one by one they take as long as trained ones,
but random weights repeat themselves, so that their guesses say nothing.

With `--core-time` the figures are the process's seconds on a core, which on a CPU that others share are nearest to the
clock of a quiet one; set OMP_NUM_THREADS=1 with it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from framework.data.render.collate import collate
from framework.model.hf_export import export
from framework.model.language_action import LanguageActionModel
from framework.model.vision_cache import VisionCache
from framework.recipe.catalogue import Catalogue
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.scene.types import Scene
from framework.scene.world.generate import generate_scene
from framework.training.ask import GUESSES, Asker, Reply
from framework.training.tasks.exported import load_trained
from tools.bench.machine import write_result

KINDS = ("curve", "intersection", "lead_braking", "cut_in")
FIRST_SCENE = 2_000_000_000
"""Seed of the first scene, of those that training holds out."""
CACHED = "guessed, images cached"
TOKENS = 1024
"""Token limit of an answer."""
PLAIN_KEYS = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw", "sensors")
"""What `generate` of transformers takes of a batch."""


class Parts:
    """Seconds in the parts of a model's answers.

    Args:
        model: The model, whose modules are watched.
    """

    def __init__(self, model: LanguageActionModel) -> None:
        self.seconds: dict[str, float] = {}
        self.passes = 0
        self._watch("vision", model.backbone.model.visual)
        for encoder in model.encoders.values():
            self._watch("encoders", encoder)
        self._watch("model", model.backbone.model)

    def start(self) -> None:
        """Forget what was measured."""
        self.seconds = dict.fromkeys(("vision", "encoders", "prefill", "decode"), 0.0)
        self.passes = 0

    def _watch(self, name: str, module: torch.nn.Module) -> None:
        started = list[float]()
        module.register_forward_pre_hook(lambda *_: started.append(now()))
        module.register_forward_hook(lambda *_: self._add(name, now() - started.pop()))

    def _add(self, name: str, seconds: float) -> None:
        if name == "model":
            name = "decode" if self.passes else "prefill"
            self.passes += 1
            seconds -= self.seconds["vision"] if name == "prefill" else 0.0  # the tower runs within it
        self.seconds[name] += seconds


class Clock:
    """What is read as the time."""

    core_time = False
    """Whether the process's seconds on a core are read instead of the clock."""


def now() -> float:
    """The time (s) once the device has done its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() if Clock.core_time else time.perf_counter()


class Measured:
    """One model, asked in each way.

    Args:
        asker: Renders and answers.
        plain: The exported model in transformers.
    """

    def __init__(self, asker: Asker, plain: Any) -> None:
        self.plain, self.parts = plain, Parts(asker.model)
        guessing = replace(asker, guesses=GUESSES)
        self.askers = {"one by one": replace(asker, guesses=0), "guessed": guessing, CACHED: guessing}
        self.rows: dict[str, list[dict[str, float]]] = {way: [] for way in (*self.askers, "transformers")}
        self.equal = 0

    def ask(self, scene: Scene, tasks: list[str]) -> None:
        """Ask one scene in each way."""
        answers: dict[str, list[tuple[int, ...]]] = {}
        visual = self.askers[CACHED].model.backbone.model.visual
        forward = visual.forward
        for way, asker in self.askers.items():
            if way == CACHED:
                VisionCache(visual, 8)
            row = dict.fromkeys(("vision", "encoders", "prefill", "decode", "passes"), 0.0)
            started, replies = now(), list[Reply]()
            for task in tasks:
                self.parts.start()
                replies += asker.answer([asker.prompt(task, scene)], TOKENS)
                row.setdefault("plan", now() - started)
                for name, seconds in self.parts.seconds.items():
                    row[name] += seconds
                row["passes"] += self.parts.passes
            row["answer"] = now() - started
            row["rest"] = row["answer"] - sum(row[name] for name in ("vision", "encoders", "prefill", "decode"))
            row["tokens"] = sum(len(reply.tokens) for reply in replies)
            self.rows[way].append(row)
            answers[way] = [reply.tokens for reply in replies]
        visual.forward = forward
        self.equal += answers["one by one"] == answers["guessed"] == answers[CACHED]
        self._ask_plain(scene, tasks, [len(tokens) for tokens in answers["guessed"]])

    @torch.no_grad()
    def _ask_plain(self, scene: Scene, tasks: list[str], lengths: list[int]) -> None:
        asker, row, started = self.askers["guessed"], dict[str, float](), now()
        renderer = asker.data.renderer(asker.model.processor)
        for task, length in zip(tasks, lengths, strict=True):
            batch = collate([asker.prompt(task, scene)], renderer.special_ids, side="left")
            given = {key: batch[key] for key in PLAIN_KEYS if key in batch}  # type: ignore[literal-required]
            self.plain.generate(**given, max_new_tokens=length, min_new_tokens=length, do_sample=False)
            row.setdefault("plan", now() - started)
        self.rows["transformers"].append(row | {"answer": now() - started})

    def figures(self) -> dict[str, Any]:
        """Milliseconds by way: p50 and p99 to the plan and to the answer, the means of the parts, and tokens."""
        found: dict[str, Any] = {way: _figures(rows) for way, rows in self.rows.items()}
        return found | {"scenes": len(self.rows["guessed"]), "equal answers": self.equal}


def _figures(rows: list[dict[str, float]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name in rows[0]:
        values = sorted(row[name] for row in rows)
        if name in ("plan", "answer"):
            figures[f"{name}_ms"] = {
                "p50": round(1e3 * statistics.median(values), 1),
                "p99": round(1e3 * values[round(0.99 * (len(values) - 1))], 1),
            }
        elif name in ("tokens", "passes"):
            figures[name] = round(statistics.mean(values), 1)
        else:
            figures[f"{name}_ms"] = round(1e3 * statistics.mean(values), 1)
    return figures


@contextmanager
def _exported(model: LanguageActionModel) -> Iterator[Any]:
    with tempfile.TemporaryDirectory() as folder:
        export(model, Path(folder))
        yield AutoModel.from_pretrained(folder, trust_remote_code=True).eval().to(model.backbone.device)


def _camera_only(scene: Scene) -> Scene:
    return replace(scene, lidar=None, radar=None, perception=None)


def _of_random_weights() -> Asker:
    train = instantiate(compose(["recipe=demo", "scale=tiny", "codecs/action=waypoints"], Catalogue()), inputs=False)
    torch.manual_seed(0)
    return Asker(train.model(special_tokens=train.data.special_tokens).eval(), train.data)


def measure(run: Path, scenes: int) -> dict[str, Any]:
    """The figures by codec and sensors."""
    _, train, trained = load_trained(run)
    cases: list[tuple[str, Asker, int, list[str]]] = [
        ("control tokens", Asker(trained, train.data), scenes, ["drive", "detect"]),
        ("waypoints, random weights", _of_random_weights(), max(scenes // 8, 1), ["drive"]),
    ]
    sensors: dict[str, Callable[[Scene], Scene]] = {"camera and ego": _camera_only, "all": lambda scene: scene}
    found: dict[str, Any] = {}
    for codec, asker, count, tasks in cases:
        with _exported(asker.model) as plain:
            for name, of in sensors.items():
                asked = [task for task in tasks if task != "detect" or name == "all"]
                measured = Measured(asker, plain)
                for number in range(count + 1):
                    scene = of(generate_scene(FIRST_SCENE + number, KINDS[number % len(KINDS)]))
                    measured.ask(scene, asked)
                    if number == 0:  # what is compiled and allocated once
                        for rows in measured.rows.values():
                            rows.clear()
                        measured.equal = 0
                found[f"{codec}; {name}; {' + '.join(asked)}"] = measured.figures()
    return found


def main() -> None:
    """Measure, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's or an exported folder")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--core-time", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("tools/bench/results/latency.json"))
    given = parser.parse_args()
    Clock.core_time = given.core_time
    write_result(given.out, "latency", vars(given) | {"run": given.run.name}, measure(given.run, given.scenes))


if __name__ == "__main__":
    main()
