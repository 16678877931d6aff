"""Joins the rows of nuScenes' tables by their tokens. A row that leads nowhere is counted, and the rest is read."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from framework.data.sources.nuscenes.rows import Rows, flag, link, matrix, numbers, pixels, size, text, whole, within
from framework.data.sources.nuscenes.tables import (
    AGAIN,
    LIDAR,
    Annotation,
    Calibration,
    Drive,
    Placement,
    Reading,
    Sample,
    Tables,
    wrong_placement,
)
from framework.data.sources.tracks import once_a_time


@functools.lru_cache(maxsize=8)
def read_tables(folder: str) -> Tables:
    """Returns the tables in the folder of a version; cached for as many versions as lie next to each other, since they
    are large and every frame needs them. Processes that are forked afterwards share them. Rows that can't be used are
    left out and counted. Raises `SceneError` for a table that is missing or no JSON.
    """
    rows = Rows(Path(folder))
    drives = _read_drives(rows)
    samples, drive_of, rows_of = _read_samples(rows, drives)
    calibrations = _read_calibrations(rows)
    used = _read_readings(rows, rows_of, calibrations)
    poses = {
        token: Placement("ego_pose", token, translation, rotation)
        for _, (token, translation, rotation) in rows.read(
            "ego_pose", token=text, translation=numbers(3), rotation=numbers(4)
        )
        if token in used
    }
    annotations = _read_annotations(rows, samples)
    named = {drive.name: drive for drive in drives.values()}
    return Tables(rows.folder, named, drive_of, poses, calibrations, annotations, rows.left_out)


def _read_drives(rows: Rows) -> dict[str, Drive]:
    """Returns the drives by their token, each with a name of its own."""
    logs = dict(values for _, values in rows.read("log", token=text, location=within))
    drives: dict[str, Drive] = {}
    names: set[str] = set()
    for _, (token, name, log) in rows.read("scene", token=text, name=within, log_token=text):
        if name in names:
            rows.leave_out("scene", "name", "repeats that of an earlier row")
            continue
        rows.joined("scene", "log_token", log, "log", logs)  # without a log the drive lacks its map alone
        names.add(name)
        drives[token] = Drive(name, logs.get(log, ""))
    return drives


def _read_samples(rows: Rows, drives: dict[str, Drive]) -> tuple[dict[str, Sample], dict[int, str], dict[str, Drive]]:
    """Returns the samples by token, the names of their drives by row and these drives by token; adds each to its
    drive.
    """
    samples: dict[str, Sample] = {}
    drive_of: dict[int, str] = {}
    drive_by_token: dict[str, Drive] = {}
    following: dict[str, str] = {}
    for row, (token, time, scene, successor) in rows.read(
        "sample", token=text, timestamp=whole, scene_token=text, next=link
    ):
        if not rows.joined("sample", "scene_token", scene, "scene", drives):
            continue
        drive = drives[scene]
        samples[token] = drive.samples[row] = Sample(token, time)
        drive_of[row], drive_by_token[token] = drive.name, drive
        following[token] = successor
    for token, successor in following.items():
        if not successor or not rows.joined("sample", "next", successor, "sample", samples):
            continue
        if samples[successor].time <= samples[token].time:
            drive_by_token[token].fault = f"sample.json: timestamp: not ascending after {token}; {AGAIN}"
    return samples, drive_of, drive_by_token


def _read_calibrations(rows: Rows) -> dict[str, Calibration]:
    sensors = {
        token: (channel, modality)
        for _, (token, channel, modality) in rows.read("sensor", token=text, channel=text, modality=text)
    }
    return {
        token: Calibration(*sensors[sensor], Placement("calibrated_sensor", token, translation, rotation), intrinsic)
        for _, (token, sensor, translation, rotation, intrinsic) in rows.read(
            "calibrated_sensor",
            token=text,
            sensor_token=text,
            translation=numbers(3),
            rotation=numbers(4),
            camera_intrinsic=matrix,
        )
        if rows.joined("calibrated_sensor", "sensor_token", sensor, "sensor", sensors)
    }


def _read_readings(rows: Rows, drives: dict[str, Drive], calibrations: dict[str, Calibration]) -> set[str]:
    """Adds the readings that scenes are made of to their drives, each of which is given by its samples' tokens. Returns
    the tokens of their poses.
    """
    kept: list[tuple[Drive, str, str, Reading]] = []
    before_key: set[str] = set()
    chain: dict[str, tuple[Drive, str, int]] = {}
    for _, (token, prev, sample, time, file, pose, calibration, is_key, width, height) in rows.read(
        "sample_data",
        token=text,
        prev=link,
        sample_token=text,
        timestamp=whole,
        filename=within,
        ego_pose_token=text,
        calibrated_sensor_token=text,
        is_key_frame=flag,
        width=pixels,
        height=pixels,
    ):
        if not rows.joined("sample_data", "sample_token", sample, "sample", drives):
            continue
        if not rows.joined("sample_data", "calibrated_sensor_token", calibration, "calibrated_sensor", calibrations):
            continue
        drive, channel = drives[sample], calibrations[calibration].channel
        kept.append((drive, channel, token, Reading(time, file, pose, calibration, is_key, sample, width, height)))
        if is_key:
            before_key.add(prev)
        else:
            drive.between[channel] += 1
        if channel == LIDAR:
            chain[token] = drive, prev, time
    for token, (drive, prev, time) in chain.items():
        if not prev or not rows.joined("sample_data", "prev", prev, "sample_data", chain):
            continue
        if chain[prev][2] >= time:
            drive.fault = f"sample_data.json: timestamp: {LIDAR} not ascending at {token}; {AGAIN}"
    used = set()
    for drive, channel, token, reading in kept:
        if channel == LIDAR or reading.is_key or token in before_key:
            drive.readings[channel].append(reading)
            used.add(reading.pose)
    for drive in drives.values():
        for readings in drive.readings.values():
            readings.sort(key=lambda reading: reading.time)
    return used


def _read_annotations(rows: Rows, samples: dict[str, Sample]) -> dict[str, list[Annotation]]:
    categories = dict(values for _, values in rows.read("category", token=text, name=text))
    instances = {
        token: categories[category]
        for _, (token, category) in rows.read("instance", token=text, category_token=text)
        if rows.joined("instance", "category_token", category, "category", categories)
    }
    annotations: dict[str, list[Annotation]] = defaultdict(list)
    for _, (token, sample, instance, translation, rotation, extent, lidar, radar) in rows.read(
        "sample_annotation",
        token=text,
        sample_token=text,
        instance_token=text,
        translation=numbers(3),
        rotation=numbers(4),
        size=size,
        num_lidar_pts=whole,
        num_radar_pts=whole,
    ):
        if not rows.joined("sample_annotation", "sample_token", sample, "sample", samples):
            continue
        if not rows.joined("sample_annotation", "instance_token", instance, "instance", instances):
            continue
        if wrong_placement(translation, rotation) is not None:
            rows.leave_out("sample_annotation", "translation, rotation", "no place with a unit quaternion")
            continue
        placement = Placement("sample_annotation", token, translation, rotation)
        time, category = samples[sample].time, instances[instance]
        annotations[sample].append(Annotation(token, time, instance, category, placement, extent, lidar, radar))
    for again in _repeated(annotations):
        rows.leave_out("sample_annotation", "instance_token", "names another box of its sample")
        annotations[again[0]].remove(again[1])
    return annotations


def _repeated(annotations: Mapping[str, Sequence[Annotation]]) -> list[tuple[str, Annotation]]:
    """Returns the annotations, each after its sample, whose instance has another one there: see `once_a_time`."""
    named = (Counter(each.instance for each in of) for of in annotations.values())
    shared = {instance for counts in named for instance, count in counts.items() if count > 1}
    if not shared:
        return []
    found = [(sample, each) for sample, of in annotations.items() for each in of if each.instance in shared]
    found.sort(key=lambda pair: pair[1].time)
    times = np.array([each.time for _, each in found], dtype=np.int64)
    names = np.unique([each.instance for _, each in found], return_inverse=True)[1].astype(np.int64)
    places = np.array([each.placement.translation for _, each in found]).reshape(-1, 3)
    return [found[row] for row in np.flatnonzero(~once_a_time(times, names, places)).tolist()]
