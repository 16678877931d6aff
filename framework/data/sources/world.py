"""Shards of the built-in world, written when a recipe first asks for them."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from framework.data.shards.record import SCHEMA_VERSION
from framework.data.shards.writer import Summary, Work, write_once, write_shards
from framework.data.stream.mixture import Location
from framework.scene.types import Scene
from framework.scene.world.generate import generate_scene
from framework.scene.world.scenarios import HELD_OUT_KINDS, TRAIN_KINDS

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
    """Write `scenes` scenes, seeds `seed` to `seed + scenes - 1`, kinds in turn (None: all of training's); cameras hold
    a still, or a clip of `camera_frames`.
    """
    names = tuple(kinds) if kinds else TRAIN_KINDS
    items = [(seed + i, names[i % len(names)], camera_frames) for i in range(scenes)]
    return write_shards(Work(items, _scene), folder, workers, quiet=quiet)


def _scene(item: tuple[int, str, int]) -> Iterator[Scene]:
    seed, kind, camera_frames = item
    yield generate_scene(seed, kind, camera_frames=camera_frames)


class WorldShards:
    """A stream of the built-in world: `scenes` scenes from `seed` on, of `kinds` or a split ("train", "held_out"), with
    stills or clips of `camera_frames`, kept under `cache`.

    The folder's name is a hash of what it holds, so that changed arguments never meet old shards.
    """

    def __init__(
        self,
        cache: str,
        scenes: int,
        seed: int,
        kinds: Sequence[str] | str = "train",
        camera_frames: int = 1,
        workers: int | None = None,
    ) -> None:
        if isinstance(kinds, str) and kinds not in SPLITS:
            raise ValueError(f"kinds: {kinds!r} is no split; give one of {sorted(SPLITS)} or a list of kinds")
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
        """Where the shards are or will be."""
        facts = (self.scenes, self.seed, self.kinds, self.camera_frames, SCHEMA_VERSION, _world_version())
        return self.cache / f"world-{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}"

    def location(self) -> Location:
        """Their folder; they are written first where they are absent, by one process of however many ask."""
        write_once(self.folder, self._write)
        return Location(str(self.folder), self.folder)

    def sample_scenes(self, count: int) -> list[Scene]:
        """The first scenes, generated without writing a shard."""
        items = [(self.seed + i, self.kinds[i % len(self.kinds)]) for i in range(min(count, self.scenes))]
        return [generate_scene(seed, kind, camera_frames=self.camera_frames) for seed, kind in items]

    def _write(self) -> Summary:
        return write_world(self.folder, self.scenes, self.seed, self.kinds, self.camera_frames, self.workers)


@functools.cache
def _world_version() -> str:
    """A hash of the world's own source, so that a changed world is not read from old shards."""
    import framework.scene.world as world

    sources = sorted(path for root in world.__path__ for path in Path(root).glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
