"""Draws a held-out scene as two checkpoints of a policy plan it: front camera and bird's eye, before and after.

    python -m tools.docs.driving DEMO/checkpoints/step-510.attempt-1 RUN/checkpoints/step-100.attempt-1 driving.svg

The scenes, the simulator and the rewards are those of the second run's evaluation that simulates. Of the scenes, the
one is drawn whose reward gains most. The picture says so: it is an example, no average.
"""

from __future__ import annotations

import argparse
import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

import torch

from framework.data.stream.mixture import read_scenes
from framework.scene.picture import birds_eye, draw_on_camera, view_of
from framework.scene.types import Scene, Trajectory
from framework.simulation.rewards.rollouts import RolloutBatch, roll_out
from framework.training.build_model import build_model
from framework.training.evaluators.driver import Driver
from framework.training.evaluators.open_loop import OpenLoopEvaluator
from framework.training.tasks.trained_run import TrainedRun

EXPERT, PLANNED = "#22c55e", "#2563eb"
CAMERA_WIDTH, ROW, MARGIN, LINE = 420, 280, 16, 26
"""Sizes in pixels: a camera's picture, a row, the space around each, a line of text."""


def answers(checkpoint: str, evaluator: OpenLoopEvaluator, scenes: Sequence[Scene]) -> RolloutBatch:
    """The plans of `checkpoint` for `scenes`, carried out in the simulator."""
    trained = TrainedRun(None, checkpoint)
    _, train = trained.recipe(inputs=False)
    model = build_model(train.model, train.data.special_tokens, train.parallel)
    trained.load_weights(trained.checkpoint(), model)
    driver, plans, texts = Driver(model, train.data, evaluator.task, evaluator.max_new_tokens), [], []
    for start in range(0, len(scenes), evaluator.batch_size):
        answered = driver.answer(scenes[start : start + evaluator.batch_size])
        plans += answered.plans
        texts += answered.texts
    return roll_out(evaluator.simulator, scenes, texts, [None] * len(scenes), [0] * len(scenes), plans)


def picture(scene: Scene, rows: Sequence[tuple[str, Trajectory]]) -> str:
    """An SVG with a row for each (label, plan): the plan, and what the expert drove, in the camera and from above."""
    paths = [plan.states[:, :2] for _, plan in rows]
    expert = scene.future.states[:, :2]
    view = view_of([expert, *paths])
    wide, high = view.size
    scale = CAMERA_WIDTH / high  # from above, forward is to the right
    width, height = 3 * MARGIN + 2 * CAMERA_WIDTH, LINE + len(rows) * (ROW + LINE + MARGIN)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="15">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{MARGIN}" y="18" fill="{PLANNED}">planned</text>',
        f'<text x="{MARGIN + 75}" y="18" fill="{EXPERT}">driven by the expert</text>',
    ]
    boxes = [("#eab308", scene.boxes)] if scene.boxes is not None else []
    front = next(camera for camera in scene.cameras if camera.name == "front")
    for index, ((label, _), path) in enumerate(zip(rows, paths, strict=True)):
        top = LINE + index * (ROW + LINE + MARGIN)
        image = draw_on_camera(front, boxes, [(EXPERT, expert), (PLANNED, path)], CAMERA_WIDTH)
        above = birds_eye(scene, {"expert": (EXPERT, expert), "planned": (PLANNED, path)}, boxes, view)
        parts += [
            f'<text x="{MARGIN}" y="{top + 18}" fill="#1d2733">{escape(label)}</text>',
            f'<image x="{MARGIN}" y="{top + LINE}" width="{CAMERA_WIDTH}" height="{ROW}" '
            f'href="data:image/jpeg;base64,{base64.b64encode(image).decode()}"/>',
            f'<g transform="translate({2 * MARGIN + 2 * CAMERA_WIDTH} {top + LINE + (ROW - wide * scale) / 2}) '
            f'rotate(90) scale({scale:.4f})">{_sized(above, wide, high)}</g>',
        ]
    return "\n".join([*parts, "</svg>\n"])


def _sized(svg: str, width: float, height: float) -> str:
    return svg.replace("<svg ", f'<svg width="{width:.0f}" height="{height:.0f}" ', 1)


def main(arguments: list[str] | None = None) -> int:
    """Evaluate both checkpoints, and write the picture of the scene that gains most. Returns 0."""
    parser = argparse.ArgumentParser(prog="python -m tools.docs.driving", description=__doc__.partition("\n")[0])
    parser.add_argument("before", help="the folder of the checkpoint that reinforcement learning started from")
    parser.add_argument("after", help="the checkpoint's folder to compare it with")
    parser.add_argument("picture", type=Path, help="the SVG to write")
    options = parser.parse_args(arguments)
    _, train = TrainedRun(None, options.after).recipe(inputs=False)
    evaluator = next(each for each in train.evals.values() if isinstance(each, OpenLoopEvaluator))
    scenes = list(read_scenes(evaluator.source, evaluator.scenes))
    before, after = (answers(folder, evaluator, scenes) for folder in (options.before, options.after))
    both = torch.stack([evaluator.rewards(rollouts).total for rollouts in (before, after)])
    judged = before.parsed & after.parsed
    best = int((both[1] - both[0]).where(judged, -torch.inf).argmax())
    rows = []
    for label, rollouts, rewards in (("before", before, both[0]), ("after", after, both[1])):
        plan, episode = rollouts.plans[best], rollouts.episodes
        assert plan is not None
        facts = ["collides" if episode.collided[best] else "no collision", f"reward {float(rewards[best]):.2f}"]
        rows.append((f"{label} reinforcement learning: {', '.join(facts)}", plan))
    options.picture.write_text(picture(scenes[best], rows), encoding="utf-8")
    print(f"scene {scenes[best].id} of {len(scenes)}: {'; '.join(label for label, _ in rows)}")
    shares = [float(rollouts.episodes.collided.float().mean()) for rollouts in (before, after)]
    print(f"collisions in all scenes: {shares[0]:.1%} before, {shares[1]:.1%} after")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
