"""Scenes of nuScenes' key frames, read from its tables: the sweep, the cameras and radars, boxes, motion and map.

The moment is the time of the key frame's sweep. Nothing later is an input: a camera or radar that measured after it is
read from its reading before, and the velocity of a box follows from the object's past alone. nuScenes' own ego frame is
ours.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from framework.data.sources.annotate import annotated, dropped, unmapped
from framework.data.sources.camera import checked, checked_mount
from framework.data.sources.image import read_image
from framework.data.sources.info import counted_points
from framework.data.sources.nuscenes.can_bus import state_at
from framework.data.sources.nuscenes.info import LICENCE, read_sweep
from framework.data.sources.nuscenes.join import read_tables
from framework.data.sources.nuscenes.maps import find_areas, map_file
from framework.data.sources.nuscenes.radar import read_radar
from framework.data.sources.nuscenes.tables import (
    AGAIN,
    LIDAR,
    MICROSECOND,
    Annotation,
    Drive,
    Placement,
    Reading,
    Sample,
    Tables,
    wrong_placement,
)
from framework.data.sources.tracks import (
    EGO_SPAN,
    LONGEST_GAP,
    SECOND,
    Body,
    Track,
    ego_history,
    followed_future,
    has_future,
    has_history,
    near_boxes,
    surroundings_of,
    track_number,
    without_leaps,
)
from framework.scene.frames import apply, invert, quaternion_rotation, yaw_of
from framework.scene.types import Boxes, Camera, FloatArray, Lidar, Radar, Scene, SceneError

LABELS = {
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.barrier": "barrier",
    "movable_object.trafficcone": "traffic_cone",
    "movable_object.debris": "debris",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
    "animal": "animal",
}
"""Our class of each of the dataset's: those of its detection task, animals and debris."""
KEY_FRAME_GAP = 3 * SECOND // 4
"""Time (ns) between an object's annotations within which it is interpolated: they are half a second apart."""
BODY_SPAN = SECOND
"""Time (ns) over which an object's velocity is measured."""
OLDEST = 200_000
"""Age (microseconds) up to which the reading of a camera or radar belongs to a moment; they measure at 12 Hz."""
CHANNELS = 5
"""Values of a LiDAR point: x, y, z, intensity, ring."""


@dataclass(frozen=True)
class Motion:
    """What moves in a drive, and where, in the map's frame."""

    ego: Track
    """At the times of the LiDAR's sweeps."""
    objects: dict[str, Track]
    """By the instance's token."""
    annotated: dict[str, Annotation]
    """The first annotation of each, by the instance's token."""
    areas: tuple[FloatArray, ...]
    """Drivable polygons `(k, 3)`; none without the map expansion."""
    map_faults: Mapping[str, int]
    """What is wrong with the map expansion, by name."""


def read_moment(folder: str, row: int) -> Scene:
    """Returns the scene of the key frame in `row` of `sample.json` of the version in `folder`. Raises `SceneError` with
    file and field for what is missing or damaged.
    """
    tables = read_tables(folder)
    drive = tables.drives[tables.drive_of[row]]
    sample = drive.samples[row]
    sweep = sweep_of(drive, sample)
    if sweep is None:
        raise SceneError(f"{folder}/sample_data.json: no key frame of {LIDAR} for sample {sample.token}; {AGAIN}")
    pose, now = tables.pose(sweep), sweep.time * MICROSECOND
    motion = _motion(folder, drive.name)
    annotations = tables.annotations.get(sample.token, [])
    known = [each for each in annotations if each.category in LABELS]
    left_out: Counter[str] = Counter()
    boxes = _boxes(tables, known, motion, pose, now, left_out) if tables.annotations else None
    first, last = (int(motion.ego.times[end]) for end in (0, -1))
    future, history = None, ego_history(motion.ego, now, pose) if has_history(first, now) else None
    if history is not None and not np.isfinite(history.states).all():
        history, left_out["history across a gap of the poses"] = None, 1
    if has_future(now, last) and first + EGO_SPAN <= now:  # its first speed follows from the past
        future = followed_future(motion.ego, now, pose, f"{drive.name} at {now}", left_out)
    if boxes is not None:
        left_out.update(motion.map_faults)
    tracks = [motion.objects[each.instance] for each in known]
    if boxes is not None:
        near = near_boxes(boxes, left_out)
        boxes, tracks = boxes.take(near), [track for track, is_near in zip(tracks, near, strict=True) if is_near]
    measured = state_at(tables.root, drive.name, now)
    cameras, radar, unread = _sensors(tables, drive, sweep.time, pose)
    left_out.update(unread)
    lidar = None
    try:
        mount = checked_mount(tables.mount(sweep), _row_of(tables, sweep))
        lidar = Lidar(read_sweep(file_of(tables, sweep), CHANNELS, left_out), mount)
    except (SceneError, OSError) as error:
        if not cameras and radar is None:
            raise
        absent = _absence(sweep) if not (tables.root / sweep.file).is_file() else None
        left_out[f"sensor {LIDAR} ({absent or error})"] = 1
    seen = Boxes(np.zeros((0, 9)), ()) if boxes is None else boxes.visible()
    return Scene(
        id=f"nuscenes-{sample.token}",
        kind="nuscenes",
        cameras=cameras,
        lidar=lidar,
        radar=radar,
        boxes=boxes,
        history=history,
        future=future,
        surroundings=None
        if boxes is None
        else surroundings_of(
            tracks, motion.areas, motion.ego, now, pose, _absent(motion, {each.instance for each in annotations})
        ),
        **annotated(None if boxes is None else seen, future),
        provenance={
            "dataset": f"nuScenes {tables.folder.name}",
            "log": drive.name,
            "timestamp": str(now),
            "licence": LICENCE,
            **({"can_bus": json.dumps(measured)} if measured else {}),
            **unmapped([each.category for each in annotations if each.category not in LABELS]),
            **dropped(seen if boxes is None else boxes, (), left_out),
        },
    )


def sweep_of(drive: Drive, sample: Sample) -> Reading | None:
    """Returns the LiDAR's reading of a key frame; None where there is none."""
    keys = (each for each in drive.readings.get(LIDAR, []) if each.is_key and each.sample == sample.token)
    return next(keys, None)


def has_sensor(tables: Tables, drive: Drive, sweep: Reading) -> bool:
    """Returns whether the file of a key frame's sweep is there, or one of a camera or radar at its time."""
    if (tables.root / sweep.file).is_file():
        return True
    others = (readings for channel, readings in drive.readings.items() if channel != LIDAR)
    newest = (_newest(tables, readings, sweep.time) for readings in others)
    return any((tables.root / each.file).is_file() for each in newest if each is not None)


@functools.lru_cache(maxsize=1)
def _motion(folder: str, name: str) -> Motion:
    """Returns what moves in a drive; cached, since its frames are read in sequence. Poses whose rotation is none are
    left out here, and refused where a moment needs them.
    """
    tables = read_tables(folder)
    drive = tables.drives[name]
    sweeps = [reading for reading in drive.readings.get(LIDAR, []) if reading.pose in tables.poses]
    ego = _track([(reading.time, tables.poses[reading.pose]) for reading in sweeps])
    rows: dict[str, list[tuple[int, Placement]]] = {}
    annotated: dict[str, Annotation] = {}
    for sweep in (each for each in sweeps if each.is_key):
        for annotation in tables.annotations.get(sweep.sample, []):
            rows.setdefault(annotation.instance, []).append((sweep.time, annotation.placement))
            annotated.setdefault(annotation.instance, annotation)
    objects = {token: _track(placements, KEY_FRAME_GAP) for token, placements in rows.items()}
    return Motion(ego, objects, annotated, *find_areas(map_file(tables.root, drive.location)))


def _absent(motion: Motion, present: Set[str]) -> Iterator[Body]:
    """Yields the bodies of the drive that are not annotated at a moment, where those in `present` are."""
    for instance, annotation in motion.annotated.items():
        if instance not in present and annotation.category in LABELS:
            width, length, height = annotation.size
            yield Body(LABELS[annotation.category], (length, width, height), motion.objects[instance])


def _track(placements: Sequence[tuple[int, Placement]], longest_gap: int = LONGEST_GAP) -> Track:
    """Returns the track of placements with their times (microseconds); those without a rotation are left out."""
    sound = {time: each for time, each in placements if wrong_placement(each.translation, each.rotation) is None}
    times = np.array(sorted(sound), dtype=np.int64)
    positions = np.array([sound[time].translation for time in times.tolist()]).reshape(-1, 3)
    rotations = quaternion_rotation(np.array([sound[time].rotation for time in times.tolist()]).reshape(-1, 4))
    headings = np.arctan2(rotations[:, 1, 0], rotations[:, 0, 0])
    return Track(times * MICROSECOND, np.c_[positions, headings], longest_gap)


def _boxes(
    tables: Tables, known: Sequence[Annotation], motion: Motion, pose: FloatArray, now: int, left_out: Counter[str]
) -> Boxes:
    """Returns the boxes in the ego frame, with velocities from the annotations up to `now`; `left_out` counts those
    that are none.
    """
    values, moment = np.full((len(known), 9), np.nan), np.array([now])
    for row, each in zip(values, known, strict=True):
        placed = invert(pose) @ tables.located(each.placement)
        width, length, height = each.size
        row[:7] = [*placed[:3, 3], length, width, height, yaw_of(placed[:3, :3])]
        over_ground = motion.objects[each.instance].until(now).velocity(moment, BODY_SPAN)
        row[7:] = (without_leaps(over_ground, left_out)[0] @ pose[:3, :3])[:2]
    points = counted_points([each._asdict() for each in known])
    track_ids = np.array([track_number(each.instance) for each in known], dtype=np.int64)
    return Boxes(values, tuple(LABELS[each.category] for each in known), track_ids=track_ids, points=points)


def _sensors(
    tables: Tables, drive: Drive, now: int, pose: FloatArray
) -> tuple[tuple[Camera, ...], Radar | None, Counter[str]]:
    """Returns the cameras of a moment, the returns of all its radars in the ego frame (None where there is no radar),
    and what is left out by name. A reading that can't be used costs only itself.
    """
    cameras: list[Camera] = []
    radars: list[FloatArray] = []
    left_out: Counter[str] = Counter()
    for channel, readings in sorted(drive.readings.items()):
        modality = tables.calibration(readings[0]).modality
        if channel == LIDAR:
            continue
        if modality not in ("camera", "radar"):
            left_out[f"sensor {channel}"] += 1
            continue
        reading = _newest(tables, readings, now)
        if reading is None:
            left_out[f"sensor {channel} (no reading of the 0.2 s up to the moment)"] += 1
            continue
        if not (tables.root / reading.file).is_file():
            left_out[f"sensor {channel} ({_absence(reading)})"] += 1
            continue
        try:
            if modality == "camera":
                cameras.append(_camera(tables, reading, now, pose))
            else:
                returns, refused = _radar(tables, reading, pose)
                radars.append(returns)
                left_out.update(refused)
        except (SceneError, OSError) as error:
            left_out[f"sensor {channel} ({error})"] += 1
    radar = Radar(np.concatenate(radars).astype(np.float32), np.eye(4)) if radars else None
    return tuple(cameras), radar, +left_out


def _absence(reading: Reading) -> str:
    """Returns how the report names a reading whose file is not there: many lie in one blob."""
    return f"no such file in {Path(reading.file).parent}; fetch the blob that holds it"


def _newest(tables: Tables, readings: Sequence[Reading], now: int) -> Reading | None:
    """Returns the newest reading that is there and not later than `now` (microseconds); that of a key frame counts as
    there, since its file belongs to the moment.
    """
    until = (each for each in reversed(readings) if now - OLDEST <= each.time <= now)
    return next((each for each in until if each.is_key or (tables.root / each.file).is_file()), None)


def _camera(tables: Tables, reading: Reading, now: int, pose: FloatArray) -> Camera:
    """Returns a camera in the ego frame at the moment, which includes the ego's motion since the exposure."""
    calibration = tables.calibration(reading)
    intrinsic = np.array(calibration.intrinsic, dtype=np.float64)
    if intrinsic.shape != (3, 3):
        raise SceneError(f"{_row_of(tables, reading)}: camera_intrinsic: no 3 x 3 matrix; {AGAIN}")
    camera = Camera(
        name=calibration.channel.removeprefix("CAM_").lower(),
        frames=(read_image(tables.root / reading.file, reading.width, reading.height),),
        times=np.array([(reading.time - now) / 1e6]),
        intrinsic=intrinsic,
        extrinsic=_to_ego(tables, reading, pose),
        width=reading.width,
        height=reading.height,
    )
    return checked(camera, _row_of(tables, reading))


def _row_of(tables: Tables, reading: Reading) -> str:
    return f"{tables.folder}/calibrated_sensor.json: {reading.calibration}"


def _radar(tables: Tables, reading: Reading, pose: FloatArray) -> tuple[FloatArray, dict[str, int]]:
    """Returns the returns `(n, 5)` of a radar in the ego frame at the moment, and how many are left out by reason."""
    returns, left_out = read_radar(tables.root / reading.file)
    return np.c_[apply(_to_ego(tables, reading, pose), returns[:, :3]), returns[:, 3:]], left_out


def _to_ego(tables: Tables, reading: Reading, pose: FloatArray) -> FloatArray:
    """Returns a reading's sensor to the ego frame that `pose` places in the map, `(4, 4)`."""
    return invert(pose) @ tables.pose(reading) @ tables.mount(reading)


def file_of(tables: Tables, reading: Reading) -> Path:
    """Returns a reading's file. Raises `SceneError` where it is not there."""
    path = tables.root / reading.file
    if not path.is_file():
        raise SceneError(f"{path}: sample_data.filename: there is no such file; fetch the blob that holds it")
    return path
