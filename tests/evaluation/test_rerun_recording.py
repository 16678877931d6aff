"""A recording for Rerun is read back: what it holds are the scenes' own images, points, boxes and states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from framework.evaluation.rerun_recording import PAST_S, SPAN_S, write_recording
from framework.scene.frames import apply
from framework.scene.picture import box_segments, visible_segments
from framework.scene.world.generate import generate_scene

rerun = pytest.importorskip("rerun", reason="the extra `rerun` is not installed")


def _read(path: Path) -> dict[tuple[str, str], list[tuple[dict[str, Any], Any]]]:
    """Values by entity and component, each with its places on the timelines."""
    from rerun.chunk import RrdReader

    values: dict[tuple[str, str], list[tuple[dict[str, Any], Any]]] = {}
    for chunk in RrdReader(path).stream().to_chunks():
        batch = chunk.to_record_batch()
        clocks = [name for name in batch.schema.names if name.startswith("log_")]
        for row in batch.drop_columns(clocks).to_pylist():
            at = {name: row[name] for name in ("record", "time") if name in row}
            for name, value in row.items():
                if value is not None and name not in at:
                    values.setdefault((chunk.entity_path, name.rpartition(":")[2]), []).append((at, value))
    return values


def test_a_recording_holds_what_the_scenes_hold(tmp_path: Path) -> None:
    scenes = [generate_scene(5, "straight"), generate_scene(6, "cut_in")]
    write_recording(tmp_path / "some.rrd", "world", scenes)
    values = _read(tmp_path / "some.rrd")

    def of(entity: str, component: str) -> dict[int, np.ndarray]:
        return {at["record"]: np.array(value) for at, value in values[entity, component] if "record" in at}

    for number, scene in enumerate(scenes):
        assert scene.cameras
        assert scene.boxes is not None
        assert scene.lidar is not None
        assert scene.history is not None
        assert scene.future is not None
        np.testing.assert_allclose(of("/world/boxes", "centers")[number], scene.boxes.values[:, :3], rtol=1e-6)
        np.testing.assert_allclose(of("/world/boxes", "half_sizes")[number], scene.boxes.values[:, 3:6] / 2, rtol=1e-6)
        assert of("/world/boxes", "labels")[number].tolist() == list(scene.boxes.labels)
        points = apply(scene.lidar.extrinsic, scene.lidar.points[:, :3].astype(np.float64))
        np.testing.assert_allclose(of("/world/lidar", "positions")[number], points, rtol=1e-5, atol=1e-5)
        for camera in scene.cameras:
            (image,) = of(f"/world/{camera.name}/image", "blob")[number]
            assert bytes(image.astype(np.uint8)) == camera.frames[-1]
            by_columns = of(f"/world/{camera.name}", "image_from_camera")[number]
            pinhole = by_columns.reshape(3, 3).T
            np.testing.assert_allclose(pinhole, camera.intrinsic, rtol=1e-6)
            strips = of(f"/world/{camera.name}/boxes", "strips")[number]
            np.testing.assert_allclose(
                strips, visible_segments(camera, box_segments(scene.boxes)), rtol=1e-4, atol=1e-2
            )
        moment = number * SPAN_S + PAST_S
        times = np.r_[np.arange(1 - len(scene.history.states), 1) / scene.history.rate_hz,
                      np.arange(1, 1 + len(scene.future.states)) / scene.future.rate_hz]  # fmt: skip
        expected = np.r_[scene.history.states[:, 3], scene.future.states[:, 3]]
        speeds = {round(at["time"].total_seconds(), 3): value[0] for at, value in values["/ego/speed", "scalars"]}
        np.testing.assert_allclose([speeds[round(moment + time, 3)] for time in times.tolist()], expected)
