"""Scenes as JSON: the command of a route, and what is unknown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from starlette.testclient import TestClient

from framework.data.render.sample import Sample
from framework.data.render.tasks import Task
from framework.scene.types import Scene
from framework.serving.scenes import parse_scene, request_of
from framework.training.ask import Asker, Reply
from tests.serving.conftest import CannedAsker, serving


class CopyingAsker(CannedAsker):
    """Detects what the perception stack says."""

    def answer(
        self, prompts: Sequence[Sample], max_new_tokens: int, tasks: Sequence[Task] | None = None
    ) -> list[Reply]:
        return [Reply("", prompt.scene.perception, 0.0, (), True, 0.0, 1) for prompt in prompts]


@pytest.mark.parametrize(
    ("route", "command"),
    [
        ([[0, 0], [5, 0], [5, 5], [5, 5]], "left"),
        ([[0, 0], [5, 0], [5, -5]], "right"),
        ([[0, 0], [9, 0], [40, 0], [40, 40]], "follow"),
        ([[2, 2], [2, 2]], "follow"),
    ],
)
def test_a_route_gives_the_command_that_a_request_lacks(
    asker: Asker, scene: Scene, route: list[list[int]], command: str
) -> None:
    assert parse_scene(request_of(scene, ["front"]) | {"command": None, "route": route}, asker.data).command == command


def test_a_velocity_that_is_unknown_is_null_both_ways(asker: Asker, scene: Scene) -> None:
    assert scene.perception is not None
    values = scene.perception.values.copy()
    values[0, 7:] = np.nan
    unknown = replace(scene, perception=replace(scene.perception, values=values))
    request = json.loads(json.dumps(request_of(unknown, ["front"]), allow_nan=False)) | {"tasks": ["detect"]}
    read = parse_scene(request, asker.data).perception
    assert read is not None
    np.testing.assert_array_equal(read.values, values)
    server = serving(CopyingAsker(asker.model, asker.data))
    with TestClient(server.app) as client:
        box = client.post("/v1/drive", json=request).json()["boxes"][0]
    server.worker.close()
    assert [box["vx"], box["vy"]] == [None, None]
    assert box["length"] == values[0, 3]
