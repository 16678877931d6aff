"""The score of nuScenes' held-out scenes is the one that the devkit's own evaluation has of the same predictions: it
loads the truth from the tables itself, and filters both by range and by points. Errors of velocity are not compared:
the devkit's true velocities look ahead, ours follow from the past, and are unknown at a scene's start.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.nuscenes import NuScenes as Devkit
from pyquaternion import Quaternion

from framework.data.sources.nuscenes.dataset import NuScenes
from framework.data.sources.nuscenes.moment import LABELS
from framework.evaluation.detection_score import DetectionScore
from framework.scene.types import Boxes
from tests.data.sources import nuscenes_tree

EXACT = 1e-4
"""The devkit measures in the map's plane, we in the vehicle's, whose nose is 0.01 rad up."""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_score_of_held_out_scenes_is_the_devkits(tmp_path: Path) -> None:
    root = tmp_path / "nuscenes"
    nuscenes_tree.write_tree(root)
    devkit = Devkit(version=nuscenes_tree.VERSION, dataroot=str(root), verbose=False)
    results = {
        sample["token"]: _predictions(devkit, sample) for sample in devkit.sample if _is_held_out(devkit, sample)
    }
    (tmp_path / "results.json").write_text(json.dumps({"meta": _META, "results": results}))
    evaluation = DetectionEval(
        devkit, config_factory("detection_cvpr_2019"), str(tmp_path / "results.json"), "mini_val", str(tmp_path), False
    )
    theirs, _ = evaluation.evaluate()

    metric, scenes = DetectionScore(), 0
    for log in NuScenes().find_logs(str(root)):
        for frame in log.frames if log.split == "held_out" else ():
            scene = NuScenes().read_scene(frame)
            token = scene.id.removeprefix("nuscenes-")
            metric.update(scene, _in_ego_frame(devkit, token, results[token]))
            scenes += 1
    assert scenes == len(results) == nuscenes_tree.SAMPLES
    ours = {name: by_slice["all"] for name, by_slice in metric.compute().items()}
    assert 0.05 < theirs.mean_ap < 0.5
    assert ours["map"] == pytest.approx(theirs.mean_ap, abs=EXACT)
    for name, average in theirs.mean_dist_aps.items():
        if f"ap/{name}" in ours:
            assert ours[f"ap/{name}"] == pytest.approx(average, abs=EXACT), name
    for error, name in (("trans_err", "translation"), ("scale_err", "scale"), ("orient_err", "orientation")):
        assert ours[f"{name}_error"] == pytest.approx(theirs.tp_errors[error], abs=EXACT), name


_META = dict.fromkeys(("use_camera", "use_lidar", "use_radar", "use_map", "use_external"), True)


def _is_held_out(devkit: Any, sample: dict[str, Any]) -> bool:
    return bool(devkit.get("scene", sample["scene_token"])["name"] == "scene-0103")


def _predictions(devkit: Any, sample: dict[str, Any]) -> list[dict[str, Any]]:
    """Boxes near the annotated ones, some missing, and some where nothing is."""
    rng = np.random.default_rng(int(sample["token"][:8], 16))
    found = []
    for token in sample["anns"]:
        row = devkit.get("sample_annotation", token)
        label = LABELS.get(row["category_name"], "bus")
        moved = np.array(row["translation"]) + np.append(rng.normal(0, 0.8, 2), 0.0)
        turned = Quaternion(row["rotation"]) * Quaternion(axis=[0, 0, 1], radians=rng.normal(0, 0.2))
        if rng.random() < 0.85:
            found.append(
                _prediction(sample, label, moved, np.array(row["size"]) * rng.uniform(0.8, 1.2, 3), turned, rng)
            )
        if rng.random() < 0.3:
            found.append(
                _prediction(sample, label, moved + np.array([6.0, -5.0, 0.0]), np.array(row["size"]), turned, rng)
            )
    return found


def _prediction(
    sample: dict[str, Any], label: str, place: Any, size: Any, rotation: Any, rng: np.random.Generator
) -> dict[str, Any]:
    return {
        "sample_token": sample["token"],
        "translation": place.tolist(),
        "size": size.tolist(),
        "rotation": list(rotation),
        "velocity": rng.normal(3, 2, 2).tolist(),
        "detection_name": label,
        "detection_score": float(rng.random()),
        "attribute_name": "",
    }


def _in_ego_frame(devkit: Any, token: str, predictions: list[dict[str, Any]]) -> Boxes:
    """The same predictions in the frame of the ego at the sweep."""
    reading = devkit.get("sample_data", devkit.get("sample", token)["data"]["LIDAR_TOP"])
    ego = devkit.get("ego_pose", reading["ego_pose_token"])
    back = Quaternion(ego["rotation"]).inverse
    rows = []
    for each in predictions:
        place = back.rotate(np.array(each["translation"]) - ego["translation"])
        ahead = back.rotate(Quaternion(each["rotation"]).rotate(np.array([1.0, 0.0, 0.0])))
        width, length, height = each["size"]
        speed = back.rotate(np.array([*each["velocity"], 0.0]))
        rows.append([*place, length, width, height, math.atan2(ahead[1], ahead[0]), *speed[:2]])
    scores = np.array([each["detection_score"] for each in predictions])
    return Boxes(np.array(rows).reshape(-1, 9), tuple(each["detection_name"] for each in predictions), scores=scores)
