"""Each way in which a scene can be broken is found, by field, and all at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from framework.scene.check import check_scene
from framework.scene.types import Boxes, Camera, Lens, Lidar, Question, Radar, Scene, Surroundings, Trajectory
from framework.scene.video import encode_clip

INTRINSIC = np.array([[80.0, 0.0, 48.0], [0.0, 80.0, 32.0], [0.0, 0.0, 1.0]])
BOX = np.array([[10.0, 0.0, 0.8, 4.5, 1.9, 1.6, 0.1, 3.0, np.nan]])
STATES = np.array([[1.0, 0.0, 0.0, 4.0], [2.0, 0.0, 0.0, 4.0]])


def _scene(**changes: object) -> Scene:
    sound = Scene(
        id="a",
        kind="straight",
        cameras=(Camera("front", (b"\xff\xd8",), np.zeros(1), INTRINSIC, np.eye(4), 96, 64),),
        lidar=Lidar(np.zeros((3, 4), np.float32), np.eye(4)),
        radar=Radar(np.zeros((2, 5), np.float32), np.eye(4)),
        boxes=Boxes(BOX, ("car",)),
        history=Trajectory(np.array([[0.0, 0.0, 0.0, 4.0]])),
        future=Trajectory(STATES),
        surroundings=Surroundings(np.zeros((1, 2, 3)), (np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),)),
    )
    return replace(sound, **changes)  # type: ignore[arg-type]


def _camera(**changes: object) -> tuple[Camera, ...]:
    return (replace(_scene().cameras[0], **changes),)  # type: ignore[arg-type]


CLIP = encode_clip([Image.new("RGB", (96, 64))] * 2, 2.0)
FILMED = {"frames": (), "clip": CLIP, "times": np.array([-0.5, 0.0])}


def test_a_sound_scene_has_no_problems() -> None:
    assert check_scene(_scene(cameras=_camera(**FILMED))) == []
    assert check_scene(_scene()) == []


@pytest.mark.fault("what an evaluation refuses after training")
@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (_scene(id=""), "id: is empty"),
        (_scene(kind=""), "kind: is empty"),
        (_scene(kind="all"), "kind: 'all' names the slice of all scenes"),
        (_scene(kind="a\0"), "kind: 'a\\x00' holds control characters"),
        (_scene(command="up"), "command: 'up' is unknown"),
        (_scene(cameras=_camera(frames=())), "frames: there are none"),
        (_scene(cameras=_camera(frames=(b"GIF",))), "neither JPEG nor PNG"),
        (_scene(cameras=_camera(times=np.zeros(2))), "times: shape (2,)"),
        (_scene(cameras=_camera(frames=(b"\xff\xd8",) * 2, times=np.array([0.0, -1.0]))), "ascending"),
        (_scene(cameras=_camera(intrinsic=np.eye(4))), "intrinsic: shape (4, 4)"),
        (_scene(cameras=_camera(intrinsic=np.zeros((3, 3)))), "focal lengths"),
        (_scene(cameras=_camera(lens=Lens("fisheye", np.zeros(5)))), "lens: coefficients of shape (5,); fisheye has 4"),
        (_scene(cameras=_camera(lens=Lens("fisheye", np.array(["a"])))), "lens.coefficients: is no array of numbers"),  # type: ignore[arg-type]
        (_scene(cameras=_camera(width=40)), "outside the image of 40 x 64"),
        (_scene(cameras=_camera(extrinsic=np.eye(3))), "extrinsic: shape (3, 3)"),
        (_scene(cameras=_camera(extrinsic=np.diag([1.0, 1.0, -1.0, 1.0]))), "not a rotation"),
        (_scene(cameras=_camera(**FILMED | {"frames": (b"\xff\xd8",)})), "clip: there are 1 frames in addition to it"),
        (_scene(cameras=_camera(**FILMED | {"clip": CLIP[:200]})), "front).clip: the clip of 200 bytes"),
        (_scene(cameras=_camera(**FILMED | {"times": np.zeros(1)})), "times: shape (1,) for a clip of 2 frames"),
        (_scene(cameras=_camera(**FILMED | {"times": np.array([0.0, -0.5])})), "ascending"),
        (_scene(cameras=_camera(**FILMED | {"width": 98})), "clip: 96 x 64 pixels, the camera 98 x 64"),
        (_scene(cameras=_camera(**FILMED | {"times": np.array([-5e8, 0.0])})), "a frame is older than 3600 s"),
        (_scene(lidar=Lidar(np.zeros((3, 3)), np.eye(4))), "lidar.points: shape (3, 3)"),
        (_scene(lidar=Lidar(np.full((3, 4), np.nan), np.eye(4))), "lidar.points: 3 rows"),
        (_scene(radar=Radar(np.zeros((3, 4)), np.eye(4))), "radar.returns: shape (3, 4)"),
        (_scene(radar=Radar(np.zeros((3, 5)), 2.0 * np.eye(4))), "radar.extrinsic: is not a rotation"),
        (_scene(boxes=Boxes(BOX, ("car", "bus"))), "boxes.values: shape (1, 9) for 2 labels"),
        (_scene(boxes=Boxes(BOX, ("ufo",))), "boxes.labels: unknown 'ufo'"),
        (_scene(boxes=Boxes(-BOX, ("car",))), "size is not positive"),
        (_scene(boxes=Boxes(BOX * np.nan, ("car",))), "NaN or infinite"),
        (_scene(boxes=Boxes(BOX + 5000.0, ("car",))), "express boxes in the ego frame"),
        (_scene(boxes=Boxes(BOX, ("car",), track_ids=np.arange(3))), "boxes.track_ids: shape (3,)"),
        (_scene(boxes=Boxes(BOX + 90.0 * (np.arange(9) == 6), ("car",))), "boxes.values: a yaw is beyond two turns"),
        (_scene(perception=Boxes(BOX, ("car",), scores=np.array([1.5]))), "perception.scores"),
        (_scene(history=Trajectory(STATES)), "history: its last state"),
        (_scene(future=Trajectory(STATES[:, :3])), "future.states: shape (2, 3)"),
        (_scene(future=Trajectory(STATES * [[1.0], [np.nan]])), "NaN or infinite at steps [1]"),
        (_scene(future=Trajectory(-STATES)), "a speed is not in 0"),
        (_scene(future=Trajectory(STATES + np.array([0.0, 0.0, 90.0, 0.0]))), "heading is outside"),
        (_scene(future=Trajectory(STATES + np.array([4e5, 0.0, 0.0, 0.0]))), "express poses in the ego frame"),
        (_scene(future=Trajectory(STATES, rate_hz=0.0)), "future.rate_hz"),
        (_scene(surroundings=Surroundings(np.zeros((2, 2, 3)))), "2 agents for 1 boxes"),
        (_scene(surroundings=Surroundings(np.zeros((1, 9, 3)))), "9 steps, the future 2"),
        (_scene(surroundings=Surroundings(np.zeros((1, 2)))), "agents: shape (1, 2)"),
        (_scene(surroundings=Surroundings(np.zeros((1, 2, 3)), (np.zeros((2, 2)),))), "drivable[0]"),
        (_scene(surroundings=Surroundings(np.zeros((1, 2, 3)), route=np.zeros(3))), "surroundings.route"),
        (_scene(surroundings=Surroundings(np.zeros((1, 2, 3)), speed_limit=-1.0)), "surroundings.speed_limit"),
        (
            _scene(surroundings=Surroundings(np.zeros((1, 2, 3)), red_lights=np.zeros((1, 4)))),
            "surroundings.red_lights",
        ),
        (
            _scene(surroundings=Surroundings(np.zeros((1, 2, 3)), red_lights=np.array([[np.inf, 0, 0, 0, 0, 1]]))),
            "surroundings.red_lights: shape (1, 6), NaN, a line's end that is nowhere",
        ),
        (
            _scene(surroundings=Surroundings(np.zeros((1, 2, 3)), red_lights=np.array([[0, 0, 0, 4, 2, 1]]))),
            "surroundings.red_lights: shape (1, 6), NaN, a line's end that is nowhere or a time that ends before",
        ),
        (_scene(questions=(Question("How many?", " ", "count"),)), "questions[0].answer: is empty"),
        (_scene(questions=(Question("How many?", "1\n2", "count"),)), "questions[0].answer: has several lines"),
        (_scene(questions=(Question("How many?", "1", "a\nb"),)), "questions[0].topic: 'a\\nb' holds control"),
        (_scene(thought="Slow.\nStop."), "thought: has several lines"),
        (_scene(thought=" "), "thought: is empty"),
        (_scene(caption=0), "caption: is a int, not a text"),
    ],
)
def test_a_broken_field_is_named(broken: Scene, said: str) -> None:
    problems = check_scene(broken)
    assert any(said in problem for problem in problems), problems


DISTANT = Surroundings(np.zeros((1, 2, 3)), distant=Boxes(BOX, ("car",)), distant_agents=np.zeros((1, 2, 3)))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"distant": Boxes(BOX, (7,))}, "surroundings.distant.labels: is a int, not a text"),  # type: ignore[arg-type]
        ({"distant": Boxes(BOX.astype(str), ("car",))}, "surroundings.distant.values: is no array"),
        ({"distant": Boxes(None, ("car",))}, "surroundings.distant.values: is no array"),  # type: ignore[arg-type]
        ({"distant": Boxes(BOX, ("car",), scores=np.array([True]))}, "surroundings.distant.scores: is no array"),
        ({"distant": Boxes(BOX, ("car",), points=np.array(["1"]))}, "surroundings.distant.points: is no array"),
        ({"distant_agents": np.zeros((1, 2, 3), bool)}, "surroundings.distant_agents: is no array"),
        ({"distant_agents": [[0.0]]}, "surroundings.distant_agents: is no array"),
    ],
)
def test_a_wrong_type_of_a_distant_road_user_is_named(broken: dict[str, Any], said: str) -> None:
    assert check_scene(_scene(surroundings=DISTANT)) == []
    (problem,) = check_scene(_scene(surroundings=replace(DISTANT, **broken)))
    assert problem.startswith(said)


CORNER = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0]])


@pytest.mark.fault("roads without an area")
@pytest.mark.parametrize(
    ("ring", "said"),
    [
        ([[0, 0], [2, 1], [4, 2]], "has no area"),
        ([[0, 0], [4, 0], [4, 0], [0, 0]], "has no area"),
        ([[3, 3]] * 5, "has no area"),
        ([[0, 0], [0.3, 0.1], [0.6, 0.2], [0.9, 0.3]], "has no area"),
        ([[0, 0], [4, 4], [4, 0], [0, 4]], "crosses itself"),
        ([[0, 0], [8, 0], [8, 4], [3, 4], [3, -3], [5, -3], [5, 3], [0, 3]], "crosses itself"),
        ([*CORNER.tolist(), *CORNER.tolist()], "crosses itself"),
    ],
)
def test_a_polygon_of_the_road_without_an_area_of_its_own_is_named(ring: list[list[float]], said: str) -> None:
    polygons = (CORNER, np.array(ring, dtype=np.float64))
    (problem,) = check_scene(_scene(surroundings=Surroundings(np.zeros((1, 2, 3)), polygons)))
    assert problem.startswith(f"surroundings.drivable[1]: {said}; drop it")


def test_outlines_that_touch_or_barely_cross_themselves_are_polygons() -> None:
    """Maps close rings twice, repeat points, and cut sharp bends a little."""
    closed = np.concatenate([CORNER, CORNER[-1:], CORNER[:1]])
    bent = np.array([[0, 0], [40, 0], [40, 4], [20.01, 4], [20.0, 4.01], [20.02, 4.01], [19.99, 4], [0, 4.0]])
    assert check_scene(_scene(surroundings=Surroundings(np.zeros((1, 2, 3)), (closed, bent)))) == []


def test_all_problems_come_at_once() -> None:
    problems = check_scene(_scene(command="up", future=Trajectory(STATES * np.nan)))
    assert all(any(field in problem for problem in problems) for field in ("command:", "future.states:"))


@pytest.mark.fault("what an evaluation refuses after training")
def test_what_an_evaluation_would_refuse_is_told_of_the_scene() -> None:
    """Metrics are sliced by names of bounded length, and count each question of a scene once."""
    asked = Question("Is the road ahead free?", "yes", "hazard")
    other = Question("Who is nearest?", "a car", "車" * 22)
    problems = check_scene(_scene(kind="車" * 22, questions=(asked, other, asked)))
    assert [problem.split(":")[0] for problem in problems] == ["kind", "questions[1].topic", "questions[2].question"]
    assert check_scene(_scene(kind="車" * 21, questions=(asked,))) == []
