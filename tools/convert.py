"""Write recorded datasets as shards.

    python -m tools.convert --source recordings --input recordings --out shards/recordings --workers 4
    python -m tools.convert --source nuscenes --split held_out --input nuscenes --out shards/held_out

A source is a preset of `conf/sources/` or of a plugin, or the dotted name of a dataset's class.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from framework.data.sources.base import RecordedDataset, Split
from framework.data.sources.recordings import RecordingShards, find_recordings
from framework.recipe.allow import TargetNotAllowed, verify
from framework.recipe.catalogue import Catalogue
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.recipe.problem import RecipeError, nearest
from framework.scene.types import SceneError

GROUP = "sources"
RECIPE = "sft_drive"
"""A recipe that has all the sources of recordings."""


def main(arguments: list[str] | None = None) -> int:
    """Writes the shards and prints a summary. Returns 1 when there is no recording, or none could be read or
    written, and 2 for a source that there is not.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.convert", description="Write recorded datasets as shards.")
    parser.add_argument("--source", nargs="+", required=True, help="presets of sources, or classes of datasets")
    parser.add_argument("--split", choices=get_args(Split), default="all", help="logs to write (default: all)")
    parser.add_argument("--input", type=Path, required=True, help="folder that is searched for recordings")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards; finished parts in it are kept")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    options = parser.parse_args(arguments)
    try:
        datasets = {name: each for source in options.source for name, each in datasets_of(source).items()}
        found = find_recordings(options.input, datasets, options.split)
        print(found)
        print(found.write(options.out, options.workers))
    except (LookupError, RecipeError, TargetNotAllowed) as error:
        print(f"--source: {error}", file=sys.stderr)
        return 2
    except (SceneError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def datasets_of(source: str) -> dict[str, RecordedDataset]:
    """Returns the datasets of a preset of `sources`, or the one of a class, by name. Raises `LookupError` for a name
    that is neither, `TargetNotAllowed` for a class that is no component, and `RecipeError` for a faulty preset.
    """
    catalogue = Catalogue()
    catalogue.make_plugins_importable()
    homes = {file.stem: folder for folder in catalogue.conf_folders() for file in sorted((folder / GROUP).glob("*"))}
    if source not in homes and "." in source:
        dataset = verify(source, [plugin.name for plugin in catalogue.plugins()])
        return {source.rpartition(".")[2].lower(): dataset()}
    if source not in homes:
        near = nearest(source, homes)
        meant = f" (did you mean {near}?)" if near else ""
        raise LookupError(f"{source}: no preset of {GROUP}{meant}; there are: {', '.join(sorted(homes))}")
    own = [name for name, folder in homes.items() if folder == catalogue.root / "conf"]
    plugins = [plugin.name for plugin in catalogue.plugins() if plugin.folder / "conf" == homes[source]]
    words = [
        f"recipe={RECIPE}",
        f"sources=[{','.join(dict.fromkeys([*own, source]))}]",
        f"plugins=[{','.join(plugins)}]",
    ]
    stream = instantiate(compose(words, catalogue), (GROUP, source), inputs=False)
    if not isinstance(stream, RecordingShards):
        raise LookupError(f"{source}: a {type(stream).__name__}, which reads no recordings; give another preset")
    return stream.datasets


if __name__ == "__main__":
    sys.exit(main())
