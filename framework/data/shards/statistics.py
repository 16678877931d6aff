"""Statistics of a stream in its index: outlines of a few of its scenes, from which its tokens can be counted.

An outline is a scene without the payload of its sensors: cameras and media keep size and times, LiDAR and radar keep
the number of their rows. Scenes are counted by layout, that is, by which sensors and labels they have. Of each layout
the index holds a uniform sample: the scenes whose ids have the lowest hashes, so that the samples of parts merge into
that of the whole.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from framework.data.shards.record import decode, encode
from framework.scene.dialogue import Dialogue
from framework.scene.types import FloatArray, Lidar, Radar, Scene, SceneError

OUTLINES = 24
"""Outlines of each layout in the index."""
LAYOUTS = 16
"""Layouts of which the index holds outlines, those of most scenes."""
MANY = 3
"""Images, or videos, of a dialogue beyond this number make no layout of their own."""
KEY = "statistics"
"""The key of the statistics, the last one of the index."""
TAIL = 1 << 23
"""Bytes at the end of an index within which the statistics lie."""


class Survey(NamedTuple):
    """What a stream consists of, as far as a plan needs to know."""

    samples: int
    """Scenes of the stream."""
    outlines: list[tuple[float, Scene]]
    """Outlines, each with the number of scenes that it stands for."""


def outline(scene: Scene) -> Scene:
    """The scene without the payload of its sensors, and without what the model does not see.

    Points and returns lie at their sensor; only their number is meant.
    """
    return replace(
        scene,
        cameras=tuple(replace(camera, frames=(), clip=None) for camera in scene.cameras),
        lidar=None if scene.lidar is None else replace(scene.lidar, points=_rows(len(scene.lidar.points), 4)),
        radar=None if scene.radar is None else replace(scene.radar, returns=_rows(len(scene.radar.returns), 5)),
        surroundings=None,
        dialogue=None if scene.dialogue is None else _dialogue_outline(scene.dialogue),
        provenance={},
    )


@dataclass(slots=True)
class Statistics:
    """The statistics of a stream, or of a part of it."""

    scenes: dict[str, int] = field(default_factory=dict)
    """Scenes by layout."""
    outlines: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By layout the encoded outlines, by the hash of their scene's id."""

    def add(self, scene: Scene) -> None:
        """Count a scene."""
        layout, rank = _layout(scene), hashlib.sha256(scene.id.encode()).hexdigest()[:16]
        sample = self.outlines.setdefault(layout, {})
        self.scenes[layout] = self.scenes.get(layout, 0) + 1
        if len(sample) < OUTLINES or rank < max(sample):
            sample[rank] = _encoded(outline(scene))
            self._trim(layout)

    def merge(self, other: Self) -> None:
        """Add the statistics of another part."""
        for layout, count in other.scenes.items():
            self.scenes[layout] = self.scenes.get(layout, 0) + count
            self.outlines.setdefault(layout, {}).update(other.outlines[layout])
            self._trim(layout)

    def written(self) -> list[dict[str, Any]]:
        """The statistics as JSON: the layouts, those of most scenes first."""
        layouts = sorted(self.scenes, key=lambda layout: -self.scenes[layout])
        return [
            {"layout": json.loads(layout), "scenes": self.scenes[layout], "outlines": self.outlines[layout]}
            for layout in layouts[:LAYOUTS]
        ]

    @classmethod
    def read(cls, layouts: Iterable[dict[str, Any]]) -> Self:
        """The statistics that `written` returned."""
        entries = {json.dumps(entry["layout"]): entry for entry in layouts}
        return cls(
            {layout: int(entry["scenes"]) for layout, entry in entries.items()},
            {layout: dict(entry["outlines"]) for layout, entry in entries.items()},
        )

    def survey(self) -> Survey:
        """The stream by its outlines. Raises `SceneError` for an outline that is damaged."""
        weighted = [
            (count / len(self.outlines[layout]), _decoded(encoded))
            for layout, count in self.scenes.items()
            for encoded in self.outlines[layout].values()
        ]
        return Survey(sum(self.scenes.values()), weighted)

    def _trim(self, layout: str) -> None:
        sample = self.outlines[layout]
        self.outlines[layout] = {rank: sample[rank] for rank in sorted(sample)[:OUTLINES]}


def survey_of(scenes: Iterable[Scene], samples: int) -> Survey:
    """The survey of a stream of `samples` scenes from some of them, which stand for equally many each."""
    outlines = [outline(scene) for scene in scenes]
    return Survey(samples, [(samples / len(outlines), each) for each in outlines])


def read_statistics(index: Path) -> Statistics | None:
    """The statistics in the index of a stream; None where it has none, or is no file.

    Only the end of the file is read: the index of many shards has gigabytes.
    """
    try:
        with index.open("rb") as file:
            file.seek(max(0, index.stat().st_size - TAIL))
            text = file.read().decode("utf-8", "ignore")
    except FileNotFoundError:
        return None
    at = text.rfind(f'"{KEY}": ')
    if at < 0:
        return None
    try:
        return Statistics.read(json.JSONDecoder().raw_decode(text, at + len(KEY) + 4)[0])
    except (ValueError, KeyError, TypeError) as error:
        raise SceneError(f"{index}: {KEY}: {error!r}: damaged; write the shards again, or remove the key") from error


def _layout(scene: Scene) -> str:
    cameras = [[camera.name, camera.width, camera.height, len(camera.times)] for camera in scene.cameras]
    fields = ("lidar", "radar", "perception", "boxes", "history", "future", "caption", "thought")
    present = [name for name in fields if getattr(scene, name) is not None]
    present += ["questions"] if scene.questions else []
    return json.dumps([cameras, present + ([] if scene.dialogue is None else _dialogue_layout(scene.dialogue))])


def _dialogue_outline(dialogue: Dialogue) -> Dialogue:
    return replace(dialogue, media=tuple(replace(medium, frames=(), clip=None) for medium in dialogue.media))


def _dialogue_layout(dialogue: Dialogue) -> list[str]:
    """By the number of media, whose sizes are as many as images: a layout holds a sample of them."""
    videos = sum(medium.is_video for medium in dialogue.media)
    counts = {"image": len(dialogue.media) - videos, "video": videos}
    return ["dialogue", *(f"{min(count, MANY)} {kind}" for kind, count in counts.items() if count)]


def _encoded(scene: Scene) -> dict[str, Any]:
    """An outline as JSON: its record without frames, its points and returns as their number."""
    sensors = {"lidar": None if scene.lidar is None else len(scene.lidar.points),
               "radar": None if scene.radar is None else len(scene.radar.returns)}  # fmt: skip
    record = encode(replace(scene, lidar=None, radar=None))
    arrays = base64.b64encode(zlib.compress(record.pop("arrays"))).decode()
    del record["frames"]
    return {**record, "arrays": arrays, "sensors": sensors}


def _decoded(encoded: dict[str, Any]) -> Scene:
    try:
        record = dict(encoded)
        sensors = record.pop("sensors")
        scene = decode({**record, "arrays": zlib.decompress(base64.b64decode(record["arrays"])), "frames": b""})
        lidar, radar = sensors["lidar"], sensors["radar"]
    except (KeyError, ValueError, zlib.error) as error:
        raise SceneError(f"{KEY}: an outline is damaged ({error}); write the shards again") from error
    return replace(
        scene,
        lidar=None if lidar is None else Lidar(_rows(lidar, 4), np.eye(4)),
        radar=None if radar is None else Radar(_rows(radar, 5), np.eye(4)),
    )


def _rows(count: int, channels: int) -> FloatArray:
    """`count` equal rows, which take the memory of one."""
    rows: FloatArray = np.broadcast_to(np.zeros(channels, dtype=np.float32), (count, channels))
    return rows


def merged(parts: Iterator[Statistics | None]) -> Statistics | None:
    """The statistics of all `parts` together; None where one has none."""
    whole = Statistics()
    for part in parts:
        if part is None:
            return None
        whole.merge(part)
    return whole
