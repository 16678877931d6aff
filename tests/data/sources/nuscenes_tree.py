"""A small tree in nuScenes' official layout: two scenes of `v1.0-mini`, drawn here, with every table, sensor and map.

It imports nothing of the repository, so that the official devkit reads the same tree in an environment of its own, see
`nuscenes_oracle.py`. All is deterministic.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

VERSION = "v1.0-mini"
SCENES = {"scene-0061": "singapore-onenorth", "scene-0103": "boston-seaport"}
"""The scenes, one that trains and one that is held out, with their locations."""
SAMPLES = 18
START = 1_532_402_927_647_951
"""Time of the first sample, in microseconds."""
CAMERAS = {"CAM_FRONT": 0, "CAM_FRONT_LEFT": 55, "CAM_FRONT_RIGHT": -55, "CAM_BACK": 180, "CAM_BACK_LEFT": 110,
           "CAM_BACK_RIGHT": -110}  # fmt: skip
RADARS = {"RADAR_FRONT": 0, "RADAR_FRONT_LEFT": 90, "RADAR_FRONT_RIGHT": -90, "RADAR_BACK_LEFT": 170,
          "RADAR_BACK_RIGHT": -170}  # fmt: skip
SIZE = (160, 90)
LATE = {"CAM_BACK_RIGHT": 15_000, "RADAR_BACK_LEFT": 22_000}
"""Microseconds by which a channel measures after the LiDAR; the others measure before it."""
RADAR_FIELDS = ("x", "y", "z", "dyn_prop", "id", "rcs", "vx", "vy", "vx_comp", "vy_comp", "is_quality_valid",
                "ambig_state", "x_rms", "y_rms", "invalid_state", "pdh0", "vx_rms", "vy_rms")  # fmt: skip
RADAR_SIZES = (4, 4, 4, 1, 2, 4, 4, 4, 4, 4, 1, 1, 1, 1, 1, 1, 1, 1)
OBJECTS = {
    "lead": ("vehicle.car", (22.0, 0.5), 7.0, (1.9, 4.5, 1.6)),
    "parked": ("vehicle.truck", (15.0, -6.0), 0.0, (2.4, 7.0, 3.0)),
    "walker": ("human.pedestrian.adult", (12.0, 8.0), 1.2, (0.7, 0.8, 1.8)),
    "cone": ("movable_object.trafficcone", (9.0, -4.0), 0.0, (0.4, 0.4, 0.9)),
    "police": ("vehicle.emergency.police", (-14.0, 3.0), 5.0, (1.9, 4.8, 1.6)),
}
"""Class, place relative to the ego's start (m), speed along x (m/s) and width, length, height (m)."""


def token(*names: object) -> str:
    """A token as the dataset has them."""
    return hashlib.md5("/".join(map(str, names)).encode()).hexdigest()


def quaternion(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> list[float]:
    """w, x, y, z of a rotation by roll about x, then pitch about y, then yaw about z."""
    (cy, sy), (cp, sp), (cr, sr) = ((math.cos(a / 2), math.sin(a / 2)) for a in (yaw, pitch, roll))
    return [
        cr * cp * cy + sr * sp * sy,
        sr * cp * cy - cr * sp * sy,
        cr * sp * cy + sr * cp * sy,
        cr * cp * sy - sr * sp * cy,
    ]


def times_of(scene: str) -> list[int]:
    """The times of a scene's samples: half a second apart, but for some milliseconds."""
    offset = 3_600_000_000 * list(SCENES).index(scene)
    return [START + offset + 500_000 * k + (k * 7_919) % 41 * 1000 - 20_000 * (k > 0) for k in range(SAMPLES)]


def ego_at(scene: str, time: int) -> tuple[list[float], list[float]]:
    """Where the ego is: an arc at growing speed, in the map's frame, the car's nose a little up."""
    t = (time - times_of(scene)[0]) * 1e-6
    way, curvature, heading = 6.0 * t + 0.15 * t * t, 0.012, 0.7
    x = math.sin(curvature * way) / curvature
    y = (1 - math.cos(curvature * way)) / curvature
    cos, sin = math.cos(heading), math.sin(heading)
    place = [600.0 + cos * x - sin * y, 1600.0 + sin * x + cos * y, 0.0]
    return place, quaternion(heading + curvature * way, pitch=-0.01, roll=0.004)


def object_at(scene: str, name: str, time: int) -> tuple[list[float], list[float]]:
    """Where an object is: along the ego's first heading at constant speed."""
    _, (x, y), speed, (_, _, height) = OBJECTS[name]
    t = (time - times_of(scene)[0]) * 1e-6
    cos, sin = math.cos(0.7), math.sin(0.7)
    x += speed * t
    return [600.0 + cos * x - sin * y, 1600.0 + sin * x + cos * y, height / 2], quaternion(
        0.7 + 0.01 * (name == "lead")
    )


def write_tree(root: Path) -> Path:
    """Writes the tree below `root`. Returns the folder of the version."""
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in ("scene", "sample", "sample_data", "ego_pose",
        "calibrated_sensor", "sample_annotation", "instance", "log", "map")}  # fmt: skip
    tables["sensor"] = [
        {"token": token(channel), "channel": channel, "modality": modality}
        for channel, modality in [("LIDAR_TOP", "lidar"), *((name, "camera") for name in CAMERAS),
                                  *((name, "radar") for name in RADARS)]
    ]  # fmt: skip
    tables["category"] = [
        {"token": token(name), "name": name, "description": ""}
        for name in sorted({each[0] for each in OBJECTS.values()})
    ]
    tables["attribute"] = [{"token": token("parked"), "name": "vehicle.parked", "description": ""}]
    tables["visibility"] = [{"token": "4", "level": "v80-100", "description": ""}]
    for scene, location in SCENES.items():
        _write_scene(root, tables, scene, location)
    folder = root / VERSION
    folder.mkdir(parents=True)
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=0))
    return folder


def _write_scene(root: Path, tables: dict[str, list[dict[str, Any]]], scene: str, location: str) -> None:
    times = times_of(scene)
    log = f"n015-{scene}"
    tables["log"].append({"token": token(log), "logfile": log, "vehicle": "n015", "date_captured": "2018-07-24",
                          "location": location})  # fmt: skip
    mask = root / "maps" / f"{token(location)}.png"
    mask.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8)).save(mask)
    tables["map"].append({"token": token(location), "log_tokens": [token(log)], "category": "semantic_prior",
                          "filename": f"maps/{mask.name}"})  # fmt: skip
    _write_map(root, location)
    samples = [token(scene, "sample", k) for k in range(SAMPLES)]
    tables["scene"].append({"token": token(scene), "log_token": token(log), "nbr_samples": SAMPLES, "name": scene,
                            "first_sample_token": samples[0], "last_sample_token": samples[-1],
                            "description": ""})  # fmt: skip
    for k, time in enumerate(times):
        tables["sample"].append(
            {"token": samples[k], "timestamp": time, "scene_token": token(scene)} | _links(samples, k)
        )
    for name, (category, *_) in OBJECTS.items():
        seen = [0] if name == "cone" else range(SAMPLES)
        rows = [token(scene, name, k) for k in seen]
        tables["instance"].append({"token": token(scene, name), "category_token": token(category),
                                   "nbr_annotations": len(rows), "first_annotation_token": rows[0],
                                   "last_annotation_token": rows[-1]})  # fmt: skip
        for k in seen:
            place, rotation = object_at(scene, name, times[k])
            tables["sample_annotation"].append(
                {"token": rows[k], "sample_token": samples[k], "instance_token": token(scene, name),
                 "attribute_tokens": [], "visibility_token": "4", "translation": place,
                 "size": list(OBJECTS[name][3]), "rotation": rotation, "num_lidar_pts": 0 if name == "walker" else 5,
                 "num_radar_pts": 0} | _links(rows, k)
            )  # fmt: skip
    for channel in ("LIDAR_TOP", *CAMERAS, *RADARS):
        _write_channel(root, tables, scene, channel, samples)


def _links(tokens: list[str], k: int) -> dict[str, str]:
    return {"prev": tokens[k - 1] if k else "", "next": tokens[k + 1] if k + 1 < len(tokens) else ""}


def _write_channel(
    root: Path, tables: dict[str, list[dict[str, Any]]], scene: str, channel: str, samples: list[str]
) -> None:
    """Writes what a sensor measured: at key frames, and some times in between."""
    calibration = token(scene, channel, "calibration")
    is_camera = channel in CAMERAS
    intrinsic = [[126.6, 0.0, 81.6], [0.0, 126.6, 49.1], [0.0, 0.0, 1.0]] if is_camera else []
    translation, rotation = mount_of(channel)
    tables["calibrated_sensor"].append({"token": calibration, "sensor_token": token(channel), "rotation": rotation,
                                        "translation": translation, "camera_intrinsic": intrinsic})  # fmt: skip
    between = 10 if channel == "LIDAR_TOP" else 6
    shift = LATE.get(channel, 0 if channel == "LIDAR_TOP" else -10_000 - 1000 * len(channel))
    times = times_of(scene)
    moments: list[tuple[int, int]] = []  # time, and the sample that it is of; the others belong to the next one
    for k, time in enumerate(times):
        if k:
            step = (time - times[k - 1]) // between
            moments += [(times[k - 1] + shift + step * i, k) for i in range(1, between)]
        moments.append((time + shift, k))
    tokens = [token(scene, channel, time) for time, _ in moments]
    suffix = ".jpg" if is_camera else ".pcd.bin" if channel == "LIDAR_TOP" else ".pcd"
    for row, (time, k) in enumerate(moments):
        is_key = time == times[k] + shift
        place, turned = ego_at(scene, time)
        pose = token(scene, channel, time, "pose")
        tables["ego_pose"].append({"token": pose, "timestamp": time, "translation": place, "rotation": turned})
        file = f"{'samples' if is_key else 'sweeps'}/{channel}/n015-{scene}__{channel}__{time}{suffix}"
        tables["sample_data"].append(
            {"token": tokens[row], "sample_token": samples[k], "ego_pose_token": pose,
             "calibrated_sensor_token": calibration, "timestamp": time, "fileformat": suffix.strip(".").split(".")[0],
             "is_key_frame": is_key, "height": SIZE[1] if is_camera else 0, "width": SIZE[0] if is_camera else 0,
             "filename": file} | _links(tokens, row)
        )  # fmt: skip
        if is_key or channel in LATE:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_bytes(_payload(channel, time))


def mount_of(channel: str) -> tuple[list[float], list[float]]:
    """Where a sensor is on the car."""
    if channel == "LIDAR_TOP":
        return [0.94, 0.0, 1.84], quaternion(-math.pi / 2 + 0.02, 0.01, -0.005)
    bearing = math.radians({**CAMERAS, **RADARS}[channel])
    place = [0.9 + 1.5 * math.cos(bearing), 0.6 * math.sin(bearing), 1.5 if channel in CAMERAS else 0.5]
    if channel in RADARS:
        return place, quaternion(bearing, 0.0, 0.01)
    axes = np.array(
        [[math.sin(bearing), 0.0, math.cos(bearing)], [-math.cos(bearing), 0.0, math.sin(bearing)], [0.0, -1.0, 0.0]]
    )
    w = math.sqrt(max(0.0, 1.0 + axes[0, 0] + axes[1, 1] + axes[2, 2])) / 2
    x = math.copysign(math.sqrt(max(0.0, 1.0 + axes[0, 0] - axes[1, 1] - axes[2, 2])) / 2, axes[2, 1] - axes[1, 2])
    y = math.copysign(math.sqrt(max(0.0, 1.0 - axes[0, 0] + axes[1, 1] - axes[2, 2])) / 2, axes[0, 2] - axes[2, 0])
    z = math.copysign(math.sqrt(max(0.0, 1.0 - axes[0, 0] - axes[1, 1] + axes[2, 2])) / 2, axes[1, 0] - axes[0, 1])
    return place, (np.array([w, x, y, z]) / np.linalg.norm([w, x, y, z])).tolist()


def _payload(channel: str, time: int) -> bytes:
    rng = np.random.default_rng(time % (1 << 32) + len(channel))
    if channel == "LIDAR_TOP":
        points = np.c_[
            rng.uniform(-40, 40, (64, 2)), rng.uniform(-1.9, 2, 64), rng.integers(0, 256, 64), rng.integers(0, 32, 64)
        ]
        return points.astype("<f4").tobytes()
    if channel in CAMERAS:
        file = io.BytesIO()
        Image.fromarray(np.full((SIZE[1], SIZE[0], 3), rng.integers(0, 256, 3), np.uint8)).save(file, "JPEG")
        return file.getvalue()
    return radar_file(rng, 0 if channel == "RADAR_BACK_RIGHT" else 9)


def radar_file(rng: np.random.Generator, count: int) -> bytes:
    """A radar's file with `count` returns; without any it has a row of NaN, as the dataset's."""
    kinds = [f"<{'f' if size == 4 else 'i'}{size}" for size in RADAR_SIZES]
    rows = np.zeros(max(count, 1), np.dtype(list(zip(RADAR_FIELDS, kinds, strict=True))))
    assert rows.dtype.itemsize == 43
    if count:
        for name in ("x", "y", "z", "rcs", "vx", "vy", "vx_comp", "vy_comp"):
            rows[name] = rng.uniform(-30, 30, count)
        rows["ambig_state"] = 3
        rows["ambig_state"][1], rows["invalid_state"][2], rows["dyn_prop"][3], rows["dyn_prop"][4] = 4, 8, 7, 6
    else:
        for name in ("x", "y", "z"):
            rows[name] = np.nan
    types = " ".join("F" if size == 4 else "I" for size in RADAR_SIZES)
    header = [
        "# .PCD v0.7 - Point Cloud Data file format", "VERSION 0.7", f"FIELDS {' '.join(RADAR_FIELDS)}",
        f"SIZE {' '.join(map(str, RADAR_SIZES))}", f"TYPE {types}", f"COUNT {' '.join('1' * len(RADAR_SIZES))}",
        f"WIDTH {len(rows)}", "HEIGHT 1", "VIEWPOINT 0 0 0 1 0 0 0", f"POINTS {len(rows)}", "DATA binary",
    ]  # fmt: skip
    return "\n".join(header).encode() + b"\n" + rows.tobytes() + b"\n"


def _write_map(root: Path, location: str) -> None:
    """Writes a map whose drivable area is a square of 300 m with a square hole in it."""
    corners = {"outer": [(450, 1450), (750, 1450), (750, 1750), (450, 1750)],
               "inner": [(560, 1660), (580, 1660), (580, 1680), (560, 1680)]}  # fmt: skip
    nodes = [
        {"token": token(location, ring, i), "x": float(x), "y": float(y)}
        for ring, points in corners.items()
        for i, (x, y) in enumerate(points)
    ]
    ring = {name: [token(location, name, i) for i in range(4)] for name in corners}
    layers: dict[str, Any] = {name: [] for name in ("line", "road_segment", "road_block", "lane", "lane_connector",
        "ped_crossing", "walkway", "stop_line", "carpark_area", "road_divider", "lane_divider",
        "traffic_light")}  # fmt: skip
    layers |= {
        "version": "1.3",
        "canvas_edge": [2000.0, 2100.0],
        "connectivity": {},
        "arcline_path_3": {},
        "node": nodes,
        "polygon": [{"token": token(location, "area"), "exterior_node_tokens": ring["outer"],
                     "holes": [{"node_tokens": ring["inner"]}]}],
        "drivable_area": [{"token": token(location, "drivable"), "polygon_tokens": [token(location, "area")]}],
    }  # fmt: skip
    path = root / "maps" / "expansion" / f"{location}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(layers))
