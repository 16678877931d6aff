"""Shards of the built-in world, written when a recipe first asks for them."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from annotated_types import Interval, MinLen

from framework.data.shards.record import SCHEMA_VERSION
from framework.data.shards.statistics import Survey, read_statistics, survey_of
from framework.data.shards.writer import Summary, Work, write_once, write_shards
from framework.data.stream.mixture import Location
from framework.recipe.component import component
from framework.recipe.ranges import PerNode, PositiveCount, Steps
from framework.scene.types import Scene
from framework.scene.world.generate import generate_scene, outline_scene
from framework.scene.world.scenarios import HELD_OUT_KINDS, KINDS, TRAIN_KINDS

SPLITS = {"train": TRAIN_KINDS, "held_out": HELD_OUT_KINDS}


def write_world(
    folder: Path,
    scenes: int,
    seed: int,
    kinds: Sequence[str] | None = None,
    camera_frames: int = 1,
    workers: int = 1,
    quiet: bool = False,
) -> Summary:
    """Writes scenes of seeds `seed` to `seed + scenes - 1`, cycling through `kinds` (None: training's); cameras hold a
    still, or a clip of `camera_frames`.
    """
    names = tuple(kinds) if kinds else TRAIN_KINDS
    items = [(seed + i, names[i % len(names)], camera_frames) for i in range(scenes)]
    return write_shards(Work(items, _scene), folder, workers, quiet=quiet)


def _scene(item: tuple[int, str, int]) -> Iterator[Scene]:
    seed, kind, camera_frames = item
    yield generate_scene(seed, kind, camera_frames=camera_frames)


@component
class WorldShards:
    """A stream of the built-in world, whose shards are written on first use.

    The folder of the shards is named by a hash of the arguments and of the world's code, so that a change of either
    writes new shards.

    Args:
        cache: Folder in which the shards' folder is created.
        scenes: Number of scenes.
        seed: The first scene's seed; the others count up from it.
        kinds: Scenario kinds to cycle through, or a split of them: "train" or "held_out".
        camera_frames: Frames of each camera's clip; 1 writes stills.
        workers: Processes that write; None takes as many as there are cores, at most 4.

    Raises:
        ValueError: `kinds` is no split or names an unknown kind, or `scenes` is less than 1.
    """

    lacks: ClassVar[Mapping[str, str]] = {"dialogue": "the world holds no conversations"}

    def __init__(
        self,
        cache: str,
        scenes: PositiveCount,
        seed: Annotated[int, Interval(ge=0, le=1 << 62)],
        kinds: Annotated[Sequence[str], MinLen(1)] | str = "train",
        camera_frames: Steps = 1,
        workers: PerNode | None = None,
    ) -> None:
        if isinstance(kinds, str) and kinds not in SPLITS:
            raise ValueError(f"kinds: {kinds!r} is not a split; give one of {sorted(SPLITS)} or a list of kinds")
        unknown = [] if isinstance(kinds, str) else [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise ValueError(f"kinds: {unknown} are no kinds of the built-in world; there are {sorted(KINDS)}")
        if scenes < 1:
            raise ValueError(f"scenes: {scenes}; a stream needs at least one")
        self.cache = Path(cache)
        self.scenes = scenes
        self.seed = seed
        self.kinds = tuple(SPLITS[kinds] if isinstance(kinds, str) else kinds)
        self.camera_frames = camera_frames
        self.workers = workers or min(4, os.cpu_count() or 1)

    @functools.cached_property
    def folder(self) -> Path:
        """The folder of the shards, whether or not they are written."""
        facts = (self.scenes, self.seed, self.kinds, self.camera_frames, SCHEMA_VERSION, _world_version())
        return self.cache / f"world-{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}"

    def location(self) -> Location:
        """Returns where the shards are; writes them first if they are missing, in one of the processes that ask."""
        write_once(self.folder, self._write)
        return Location(str(self.folder), self.folder)

    def survey(self, count: int) -> Survey:
        """See `Source`: from the index of written shards, else the first scenes, generated without images."""
        statistics = read_statistics(self.folder / "index.json")
        if statistics is not None:
            return statistics.survey()
        whole_cycles = max(1, count // len(self.kinds)) * len(self.kinds)  # each kind equally often
        numbers = range(min(whole_cycles, self.scenes))
        scenes = (outline_scene(self.seed + i, self.kinds[i % len(self.kinds)], self.camera_frames) for i in numbers)
        return survey_of(scenes, self.scenes)

    def _write(self) -> Summary:
        return write_world(self.folder, self.scenes, self.seed, self.kinds, self.camera_frames, self.workers)


@functools.cache
def _world_version() -> str:
    """Returns a hash of the world's source, so that changed code does not read old shards."""
    import framework.scene.world as world

    sources = sorted(path for root in world.__path__ for path in Path(root).glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
