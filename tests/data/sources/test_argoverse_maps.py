"""Argoverse 2 logs with odd maps, linked folders and columns of texts: each fault is named, and the rest read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from framework.data.sources.argoverse import Argoverse
from framework.scene.check import check_scene
from tests.data.sources.test_argoverse_faults import change, found, left_out, log, made, scene_at

__all__ = ["log", "made"]  # fixtures


def _edit_map(log: Path, **layers: Any) -> Path:
    (path,) = log.glob("map/log_map_archive_*")
    path.write_text(json.dumps(json.loads(path.read_text()) | layers))
    return Path(path)


POINT = {"x": 1.0, "y": 2.0, "z": 3.0}


@pytest.mark.parametrize(
    "odd",
    [
        {"id": 1},
        {"area_boundary": [POINT, POINT, {"x": 1.0, "y": 2.0}]},
        {"area_boundary": [POINT, POINT]},
        {"area_boundary": [POINT, POINT, {**POINT, "x": None}]},
        {"area_boundary": None},
        7,
    ],
)
@pytest.mark.fast_cases(2)
def test_a_drivable_area_that_is_no_polygon_is_counted_and_the_others_are_kept(log: Path, odd: Any) -> None:
    whole = scene_at(log).surroundings
    (path,) = log.glob("map/log_map_archive_*")
    path = _edit_map(log, drivable_areas=json.loads(path.read_text())["drivable_areas"] | {"odd": odd})
    counts = found(log).left_out
    assert counts[f"drivable area of the map without three points of x, y and z ({path})"] == 1
    around = scene_at(log).surroundings
    assert whole is not None
    assert around is not None
    assert len(whole.drivable) == 1
    assert np.array_equal(around.drivable[0], whole.drivable[0])


@pytest.mark.fault("roads without an area")
@pytest.mark.parametrize(
    ("places", "said", "parts"),
    [
        ([(0, 0), (2, 1), (4, 2)], "that has no area", 0),
        ([(1, 1)] * 4, "that has no area", 0),
        ([(0, 0), (4, 4), (4, 0), (0, 4)], "that crosses itself, cut into its parts", 2),
    ],
)
def test_a_drivable_area_without_an_area_of_its_own_is_mended_or_left_out_and_counted(
    log: Path, places: list[tuple[float, float]], said: str, parts: int
) -> None:
    (path,) = log.glob("map/log_map_archive_*")
    areas = json.loads(path.read_text())["drivable_areas"]
    start = next(iter(areas.values()))["area_boundary"][0]
    ring = [{"x": start["x"] + x, "y": start["y"] + y, "z": start["z"]} for x, y in places]
    path = _edit_map(log, drivable_areas=areas | {"odd": {"area_boundary": ring}})
    assert found(log).left_out[f"drivable area of the map {said} ({path})"] == 1
    scene = scene_at(log)
    assert scene.surroundings is not None
    assert len(scene.surroundings.drivable) == 1 + parts
    assert check_scene(scene) == []


@pytest.mark.parametrize(("layer", "value"), [("drivable_areas", []), ("lane_segments", None), ("lane_segments", 3)])
def test_a_layer_of_the_map_that_is_none_is_counted_and_the_log_read(log: Path, layer: str, value: Any) -> None:
    path = _edit_map(log, **{layer: value})
    assert found(log).left_out[f"layer {layer} of the map is missing or no table ({path})"] == 1
    around = scene_at(log).surroundings
    assert around is not None
    assert len(around.drivable) == (layer != "drivable_areas")


@pytest.mark.parametrize("text", ["[]", "[" * 100_000, "null"])
def test_a_map_of_another_form_is_counted_and_the_log_read(log: Path, text: str) -> None:
    (path,) = log.glob("map/log_map_archive_*")
    path.write_text(text)
    assert any(name.startswith(f"map that can't be read ({path}: ") for name in found(log).left_out)
    assert check_scene(scene_at(log)) == []


def test_links_to_logs_and_to_their_parts_are_followed(log: Path, tmp_path: Path) -> None:
    whole, there = found(log), tmp_path / "linked" / "train"
    there.mkdir(parents=True)
    (there / log.name).symlink_to(log)
    (log / "sensors").rename(tmp_path / "sensors")
    (log / "sensors").symlink_to(tmp_path / "sensors")
    (tmp_path / "sensors" / "up").symlink_to(log)
    (linked,) = Argoverse(sweep="annotated").find_logs(str(tmp_path / "linked"))
    assert (linked.name, linked.official) == (log.name, "train")
    assert [at for _, at in linked.frames] == [at for _, at in whole.frames]
    assert linked.left_out == whole.left_out


def test_a_calibration_or_poses_of_texts_are_named(log: Path) -> None:
    path = log / "calibration" / "intrinsics.feather"
    change(path, lambda columns: columns.update(fx_px=columns["fx_px"].astype(str)))
    scene = scene_at(log)
    assert scene.cameras == ()
    assert all(f"{path}: column fx_px: holds string, not numbers" in name for name in left_out(scene) if "ring" in name)
    path = log / "city_SE3_egovehicle.feather"
    change(path, lambda columns: columns.update(qw=columns["qw"].astype(str)))
    (fault,) = found(log).left_out
    assert fault.startswith(f"log that can't be read ({path}: column qw: holds string, not numbers")
