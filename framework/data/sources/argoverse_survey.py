"""What an Argoverse 2 sensor log holds: the moments that become scenes, and everything else by name and number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from framework.data.sources.argoverse_cameras import Rig, read_rig
from framework.data.sources.argoverse_log import (
    ANNOTATIONS,
    COLUMNS,
    DISTORTION,
    DRIVABLE,
    INTRINSICS,
    LIDAR,
    POSES,
    Files,
    annotated_times,
    list_files,
    read_map,
    read_poses,
    sweep_at,
    unread_columns,
)
from framework.data.sources.base import Frame, SweepRule
from framework.data.sources.poses import Poses, newest
from framework.data.sources.shutter import Shutter
from framework.data.sources.tracks import Nanoseconds, has_future, has_history
from framework.scene.types import SceneError


def survey_log(
    log: Path, shutter: Shutter, cameras: Sequence[str] | None, rule: SweepRule
) -> tuple[tuple[Frame, ...], dict[str, int]]:
    """Returns the frames of a log, each a table and a time (ns), and what no frame reads, by name.

    A moment becomes a scene when it has a past and a future, or sensors and a target: annotations or a future. Raises
    `SceneError` for a log whose poses can't be read.
    """
    files, poses, rig = list_files(log), read_poses(log), read_rig(log)
    annotated, fault = annotated_times(log)
    moments = _moments(files) if annotated is None else np.unique(annotated)
    covered = moments[poses.cover(moments)]
    swept = sweep_at(files.sweeps, covered, rule)
    read = files.images if cameras is None else {name: files.images[name] for name in cameras if name in files.images}
    images = {name: times[poses.cover(times)] for name, times in read.items() if name in rig.mounts}
    sensed = swept >= 0
    for times in images.values():
        sensed = sensed | (newest(times, covered, shutter.age_ns) >= 0)
    past, future = _drives(poses, covered)
    is_partial = _at_edges(list(images.values()), covered, shutter.age_ns)
    is_used = ((past & future) | (sensed & (future | (annotated is not None)))) & ~is_partial
    used = covered[is_used]
    counts = Counter({f"file that is not read: {name}": count for name, count in files.unread.items()})
    counts.update(poses.faults)
    partial = int(is_partial.sum())
    counts["moment at which some cameras have not started, or have ended"] = partial
    counts["moment with neither a past and a future nor sensors and a target"] = len(moments) - len(used) - partial
    if annotated is not None:
        counts["box at a moment that becomes no scene"] = int((~np.isin(annotated, used)).sum())
    counts.update({f"camera {name} that the log lacks": 1 for name in {*(cameras or ())} - files.images.keys()})
    for name, times in files.images.items():
        counts[f"camera {name} without images"] = int(not len(times))
        shown = len(shutter.seen(images[name], used)) if name in images else 0
        counts[f"image of {name} that no scene shows"] = len(times) - shown
    counts["sweep that no scene has"] = len(set(range(len(files.sweeps))) - set(swept[is_used].tolist()))
    counts["log without annotations"] = int(annotated is None)
    if fault is not None:
        counts[fault] = 1
    counts["log without sweeps"] = int(not len(files.sweeps))
    counts["log without images"] = int(not files.images)
    counts.update(unread_map(files.map, annotated is not None))
    counts.update(_unread_calibration(rig, files))
    counts.update(_unread_columns(log))
    key = log / (POSES if annotated is None else ANNOTATIONS)
    frames = tuple((str(key), now) for now in used.tolist())
    return frames, {name: count for name, count in counts.items() if count}


def _moments(files: Files) -> Nanoseconds:
    """Returns the moments of a log without annotations: its sweeps, or else the images of its first camera."""
    if len(files.sweeps) or not files.images:
        return files.sweeps
    return next(iter(files.images.values()))


def _at_edges(images: Sequence[Nanoseconds], moments: Nanoseconds, age: int) -> npt.NDArray[np.bool_]:
    """Returns at which moments `(n,)` some cameras already have an image and others do not yet, or some no longer.
    Recipes name cameras, and a scene must not have others alone. That is so where all begin, or end, within `age` ns;
    a camera that fails in the middle of a log costs no moment.
    """
    times = [each for each in images if len(each)]
    partial = np.zeros(len(moments), dtype=bool)
    if not times:
        return partial
    firsts, lasts = np.array([each[0] for each in times]), np.array([each[-1] for each in times]) + age
    if np.ptp(firsts) <= age:
        partial |= (moments >= firsts.min()) & (moments < firsts.max())
    if np.ptp(lasts) <= age:
        partial |= (moments > lasts.min()) & (moments <= lasts.max())
    return partial


def _drives(poses: Poses, moments: Nanoseconds) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Returns at which moments `(n,)` the log covers a scene's past, and its future."""
    first, last = int(poses.times[0]), int(poses.times[-1])
    past = [has_history(first, now) for now in moments.tolist()]
    future = [has_future(now, last) for now in moments.tolist()]
    return np.array(past, dtype=bool), np.array(future, dtype=bool)


def unread_map(archive: Path | None, is_annotated: bool = True) -> dict[str, int]:
    """Returns what is not read of a log's map: all but its drivable areas, and these too without annotations; and what
    cannot be read.
    """
    if archive is None:
        return {"log without a vector map": 1}
    try:
        vectors = read_map(archive)
    except SceneError as error:
        return {f"map that can't be read ({error})": 1}
    unread = {layer: count for layer, count in vectors.entries.items() if layer != DRIVABLE or not is_annotated}
    counts = {f"{layer.replace('_', ' ').removesuffix('s')} of the map": count for layer, count in unread.items()}
    return {**counts, **vectors.faults}


def _unread_calibration(rig: Rig, files: Files) -> dict[str, int]:
    """Returns what the calibration has and scenes have not."""
    idle = sorted((rig.mounts.keys() | rig.faults.keys()) - files.images.keys())
    counts = {f"camera {name} with a calibration and no images": 1 for name in idle}
    counts |= {f"place of {name} on the vehicle": 1 for name in rig.idle}
    counts["k1, k2 and k3 of a camera, whose images are undistorted"] = len(rig.mounts)
    counts[f"laser_number and offset_ns of a sweep ({LIDAR})"] = len(files.sweeps)
    return counts


def _unread_columns(log: Path) -> dict[str, int]:
    """Returns the columns of a log's tables that nothing is read from."""
    counts: dict[str, int] = {}
    for file, names in COLUMNS.items():
        known = (*names, *DISTORTION) if file == INTRINSICS else names
        with suppress(SceneError):  # which the reader of the table names
            counts.update(
                {f"column of {file} that is not read: {name}": 1 for name in unread_columns(log / file, *known)}
            )
    return counts
