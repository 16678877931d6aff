from __future__ import annotations

import dataclasses
import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from framework.scene.frames import project
from framework.scene.lens import lens_of
from framework.scene.lens import project as project_lens
from framework.scene.picture import NEAR, View, birds_eye, draw_on_camera, view_of, visible_segments
from framework.scene.types import Boxes, Camera, Scene
from framework.scene.world.generate import generate_scene
from framework.scene.world.rig import TINY_RIG


def blank_camera() -> Camera:
    mount, encoded = TINY_RIG.cameras[0], io.BytesIO()
    Image.new("RGB", (mount.width, mount.height)).save(encoded, format="PNG")
    frame = (encoded.getvalue(),)
    return Camera("front", frame, np.zeros(1), mount.intrinsic, mount.extrinsic, mount.width, mount.height)


def box(x: float, y: float = 0.0) -> Boxes:
    return Boxes(np.array([[x, y, 1.6, 4.0, 2.0, 1.0, 0.0, 0.0, 0.0]]), ("car",))


def test_segments_in_front_are_where_they_project() -> None:
    camera, segments = blank_camera(), np.array([[[10.0, 1.0, 0.5], [20.0, -2.0, 1.0]]])
    expected, _ = project(segments[0], camera.intrinsic, camera.extrinsic)
    np.testing.assert_allclose(visible_segments(camera, segments)[0], expected)


def test_segments_are_cut_at_the_near_plane() -> None:
    camera = blank_camera()
    through, behind = [[-5.0, 1.0, 1.0], [15.0, 1.0, 1.0]], [[-5.0, 0.0, 0.0], [-9.0, 0.0, 0.0]]
    shown = visible_segments(camera, np.array([through, behind]))
    assert shown.shape == (1, 2, 2)
    cut = np.array([[camera.extrinsic[0, 3] + NEAR, 1.0, 1.0]])
    np.testing.assert_allclose(shown[0, 0], project(cut, camera.intrinsic, camera.extrinsic)[0][0], rtol=1e-6)


def test_a_box_is_drawn_where_it_is_seen() -> None:
    camera = blank_camera()
    picture = draw_on_camera(camera, [("#ff0000", box(14.0))], width=480)
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    assert pixels.shape == (320, 480, 3)
    rows, columns = np.nonzero(pixels[..., 0] > 128)
    near = np.array([[12.0, 1.0, 2.1], [12.0, -1.0, 1.1]])
    (left, top), (right, bottom) = project(near, camera.intrinsic, camera.extrinsic)[0] * 5
    found = [columns.min(), columns.max(), rows.min(), rows.max()]
    np.testing.assert_allclose(found, [left, right, top, bottom], atol=4)


def test_what_is_behind_is_not_drawn() -> None:
    picture = draw_on_camera(blank_camera(), [("#ff0000", box(-20.0))])
    assert np.asarray(Image.open(io.BytesIO(picture))).max() < 16


def test_forward_is_up_and_left_is_left() -> None:
    view = View(behind=10.0, ahead=50.0, aside=20.0, scale=2.0)
    np.testing.assert_allclose(view.pixels(np.array([[50.0, 20.0], [0.0, 0.0]])), [[0.0, 0.0], [40.0, 100.0]])
    assert view.shows(np.array([[0.0, 0.0], [60.0, 0.0], [0.0, -25.0]])).tolist() == [True, False, False]


@pytest.mark.parametrize(("end", "ahead"), [(5.0, 45.0), (70.0, 82.0), (400.0, 120.0)])
def test_the_view_reaches_as_far_as_the_paths(end: float, ahead: float) -> None:
    assert view_of([np.array([[0.0, 0.0], [end, 0.0]])]).ahead == ahead


def test_birds_eye_is_well_formed_and_escaped() -> None:
    scene = generate_scene(5)
    assert scene.future is not None
    assert scene.boxes is not None
    drawing = birds_eye(scene, {"<b>expert": ("#00ff00", scene.future.states)}, [("#123456", scene.boxes)])
    root = ElementTree.fromstring(drawing)
    titles = [element.text for element in root.iter() if element.tag.endswith("title")]
    assert titles == [*scene.boxes.labels, "<b>expert"]
    assert scene.surroundings is not None
    polygons = [element for element in root.iter() if element.tag.endswith("polygon")]
    assert len(polygons) == len(scene.surroundings.drivable) + len(scene.boxes) + 1


def test_a_bare_scene_is_drawn() -> None:
    ElementTree.fromstring(birds_eye(Scene(id='"bare" & <odd>', kind="x"), {}))


def test_a_lens_bends_what_is_drawn_and_leaves_out_what_it_cannot_see() -> None:
    bent = dataclasses.replace(blank_camera(), lens=lens_of("fisheye", np.zeros(4)))
    segments = np.array([[[8.0, 6.0, 1.0], [8.0, -6.0, 1.0]]])
    pieces = visible_segments(bent, segments)
    ends = project_lens(bent, segments[0])
    np.testing.assert_allclose([pieces[0, 0], pieces[-1, 1]], ends)
    np.testing.assert_allclose(pieces[1:, 0], pieces[:-1, 1])
    straight = ends[0] + (pieces[len(pieces) // 2, 0, 0] - ends[0, 0]) / np.ptp(ends[:, 0]) * np.diff(ends, axis=0)[0]
    assert abs(pieces[len(pieces) // 2, 0, 1] - straight[1]) > 0.5
    folding = dataclasses.replace(bent, lens=lens_of("brown_conrady", np.array([-0.9, 0.0, 0.0, 0.0])))
    assert 0 < len(visible_segments(folding, segments)) < len(pieces)
