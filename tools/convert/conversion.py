"""What is converted: presets of sources, the folder that they are searched in, a split, and overrides."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from framework.data.shards.parts import Work
from framework.data.sources.base import RecordedDataset, Split
from framework.data.sources.conversations import ConversationShards
from framework.data.sources.recordings import Recordings, RecordingShards, find_recordings, read_item
from framework.recipe.allow import verify
from framework.recipe.catalogue import Catalogue
from framework.recipe.compose import compose
from framework.recipe.composition import Composition
from framework.recipe.instantiate import instantiate
from framework.recipe.problem import nearest
from framework.scene.types import Scene

GROUP = "sources"
RECIPE = "sft_mixed"
"""A recipe that has all the sources of recordings and of conversations, and all tasks."""


@dataclass(frozen=True)
class Conversion:
    """A conversion as its command describes it; JSON holds it, so that other nodes can repeat it."""

    sources: tuple[str, ...]
    """Presets of sources, or classes of datasets."""
    input: str
    """The folder that is searched."""
    split: Split
    """The logs, or conversations, to write."""
    overrides: tuple[str, ...] = ()
    """Overrides of the sources' arguments."""

    def work(self) -> Work[Any]:
        """Returns what is to be written; searches the folder. Raises what `reader` raises, and `SceneError` where there
        is nothing.
        """
        reader = self.reader
        if isinstance(reader, ConversationShards):
            work, identity = reader.work(), reader.identity()
        else:
            found = find_recordings(Path(self.input), reader, self.split)
            print(found)
            work, identity = found.work(), found.identity(Path(self.input))
        facts = {"input": self.input, "sources": list(self.sources), "split": repr(self.split)}
        return replace(work, identity={**facts, **identity}, tasks=self.tasks)

    @property
    def scenes(self) -> Callable[[Any], Iterable[Scene]]:
        """What yields the scenes of an item of the work."""
        reader = self.reader
        if isinstance(reader, ConversationShards):
            return reader.reader.scenes
        return functools.partial(read_item, reader)

    @functools.cached_property
    def tasks(self) -> Mapping[str, Callable[[Scene], bool]]:
        """By name of a task whether a scene supports it."""
        tasks = instantiate(_composed(self.sources[0], self.overrides), ("data", "tasks"), inputs=False)
        return {name: task.supports for name, task in tasks.items()}

    @functools.cached_property
    def reader(self) -> dict[str, RecordedDataset] | ConversationShards:
        """The datasets by name, or the one stream of conversations. Raises `LookupError` for a name that is no source,
        `TargetNotAllowed` for a class that is no component, and `RecipeError` for a faulty preset.
        """
        datasets: dict[str, RecordedDataset] = {}
        for source in self.sources:
            stream = _stream(source, self.overrides)
            if isinstance(stream, ConversationShards) and len(self.sources) == 1:
                return stream.moved(Path(self.input), self.split)
            if isinstance(stream, ConversationShards):
                raise LookupError(f"{source}: conversations are converted alone, and merged by tools.shards merge")
            datasets |= stream
        return datasets

    def differences(self, identity: Mapping[str, Any]) -> list[str]:
        """Returns what of `identity`, the folder's, is other than here: a node with other code must not add to it."""
        reader = self.reader
        if isinstance(reader, ConversationShards):
            own: Mapping[str, Any] = reader.identity(files=False)
        else:
            own = Recordings(reader, dict.fromkeys(reader, ())).readers()
        return [
            f"{name}: {identity[name]} there, {own[name]} here"
            for name in own
            if identity.get(name, own[name]) != own[name]
        ]


def _stream(source: str, overrides: tuple[str, ...]) -> dict[str, RecordedDataset] | ConversationShards:
    """Returns the datasets of a source, or the stream of conversations that it is."""
    catalogue = _catalogue()
    if "." in source and source not in _homes():
        dataset = verify(source, [plugin.name for plugin in catalogue.plugins()])
        return {source.rpartition(".")[2].lower(): dataset()}
    stream = instantiate(_composed(source, overrides), (GROUP, source), inputs=False)
    if isinstance(stream, ConversationShards):
        return stream
    if not isinstance(stream, RecordingShards):
        raise LookupError(f"{source}: a {type(stream).__name__}, which reads no recordings; give another preset")
    return stream.datasets


@functools.cache
def _catalogue() -> Catalogue:
    catalogue = Catalogue()
    catalogue.make_plugins_importable()
    return catalogue


@functools.cache
def _homes() -> dict[str, Path]:
    """Returns the folder of presets that each source is in."""
    return {file.stem: folder for folder in _catalogue().conf_folders() for file in sorted((folder / GROUP).glob("*"))}


@functools.cache
def _composed(source: str, overrides: tuple[str, ...]) -> Composition:
    """Returns a recipe with the preset of a source. Raises `LookupError` for a name that is no preset."""
    catalogue, homes = _catalogue(), _homes()
    own = [name for name, folder in homes.items() if folder == catalogue.root / "conf"]
    words = [f"recipe={RECIPE}"]
    if "." not in source or source in homes:
        if source not in homes:
            near = nearest(source, homes)
            meant = f" (did you mean {near}?)" if near else ""
            raise LookupError(f"{source}: no preset of {GROUP}{meant}; there are: {', '.join(sorted(homes))}")
        plugins = [plugin.name for plugin in catalogue.plugins() if plugin.folder / "conf" == homes[source]]
        words += [f"sources=[{','.join(dict.fromkeys([*own, source]))}]", f"plugins=[{','.join(plugins)}]"]
    return compose([*words, *overrides], catalogue)
