"""Shards of conversations, written when a recipe first asks for them."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Interval

from framework.data.shards.record import SCHEMA_VERSION
from framework.data.shards.statistics import Survey, read_statistics, survey_of
from framework.data.shards.writer import Summary, Work, write_once, write_shards
from framework.data.sources.base import HELD_OUT_ONE_IN, LogSplit, Split, hashed_split
from framework.data.sources.media import Sampling, load
from framework.data.sources.once import once_per_node
from framework.data.sources.rows import LOOKED_AT, find_files, open_rows
from framework.data.sources.turns import read_turns
from framework.data.sources.version import code_version
from framework.data.stream.mixture import Location
from framework.recipe.component import component
from framework.recipe.paths import ConversationsPath
from framework.recipe.problem import nearest
from framework.recipe.ranges import PerNode, Steps
from framework.scene.dialogue import Dialogue, Turn
from framework.scene.types import Scene, SceneError

Item = tuple[str, int]
"""A file and the number of one of its rows."""


@dataclass(frozen=True)
class Reader:
    """Reads rows as scenes. It pickles to the processes that convert."""

    root: str
    """The folder that the ids of scenes name files from."""
    media: str | None
    """The folder that paths of media are relative to; None takes the file's own."""
    split: Split
    """The conversations to read."""
    sampling: Sampling
    """Which frames of a video are kept."""
    columns: tuple[tuple[str, str], ...] = ()
    """Keys that conversations have, each with the one that rows have instead."""

    def scenes(self, item: Item) -> Iterator[Scene]:
        """Yields the conversation of a row, or those of a row that packs several, as far as they are in the split.

        Raises `SceneError` with file, place and reason for one that cannot be used, after the others of its row.
        """
        path, number = Path(item[0]), item[1]
        rows = open_rows(path)
        place = f"{path}{rows.place(number)}"
        try:
            row = self._renamed(rows.row(number))
        except (ValueError, RecursionError) as error:  # of whichever reader
            raise SceneError(f"{place}: {error}") from error
        problems = []
        name = f"{os.path.relpath(path, self.root)}{rows.place(number)}"
        for index, each in enumerate(row if isinstance(row, list) else [row]):
            try:
                if self.split in ("all", split_of(each)):
                    yield self._scene(each, f"{name}.{index}" if isinstance(row, list) else name, path.parent)
            except (ValueError, RecursionError) as error:  # of whatever an odd row holds
                problems.append(str(error))
        if problems:
            raise SceneError(f"{place}: {'; '.join(problems)}")

    def _renamed(self, row: Any) -> Any:
        if isinstance(row, list):
            return [self._renamed(each) for each in row]
        if not self.columns or not isinstance(row, Mapping):
            return row
        theirs = {key for _, key in self.columns}
        kept = {key: value for key, value in row.items() if key not in theirs}
        return kept | {ours: row[key] for ours, key in self.columns if key in row}

    def _scene(self, row: Any, name: str, folder: Path) -> Scene:
        conversation = read_turns(row)
        root = folder if self.media is None else Path(self.media)
        media = tuple(load(reference, root, self.sampling) for reference in conversation.media)
        turns = tuple(Turn(role, tuple(parts)) for role, parts in conversation.turns)
        given = _id_of(row)
        return Scene(
            id=name if given is None else f"{name}/{given}",
            kind="conversation",
            dialogue=Dialogue(turns, media),
            provenance={
                "dataset": "conversations",
                "log": name if given is None else str(given),
                "dropped": json.dumps(conversation.dropped),
            },
        )


def split_of(row: Any) -> LogSplit:
    """Returns the split of a conversation: by a hash of its id, else of its content, which no other row changes."""
    given = _id_of(row) if isinstance(row, Mapping) else None
    return hashed_split(str(given) if given is not None else json.dumps(row, sort_keys=True, default=repr))


def _id_of(row: Mapping[str, Any]) -> Any:
    """Returns the id of a row; None for one that tables are padded with, which would put all rows in one split."""
    given = row.get("id")
    return None if given == "" or given != given else given


@component
class ConversationShards:
    """A stream of conversations in the forms of ShareGPT, LLaVA and OpenAI, whose shards are written on first use.

    The folder of the shards is named by a hash of the files, of the arguments and of the code that reads them, so that
    a change of any writes new shards. A change of an image alone is not seen.

    Args:
        conversations: A file of conversations (JSON, JSON lines, parquet, Arrow, a WebDataset tar), or a folder of
            files at any depth: a Hugging Face dataset on disk and MDS shards are such folders.
        cache: Folder in which the shards' folder is created.
        media: Folder that paths of images and videos are relative to; None takes the folder of each file.
        split: Conversations to include. "train" and "held_out" have none in common: a tenth is held out, by a hash of
            ids, or of the content where a row has no id. Rows with one id are in one split.
        columns: Keys of rows by what they stand for, where they differ: `{messages: dialog, images: pictures}`.
        video_rate_hz: Frames a second that are kept of a video. A list of images is taken to have this rate.
        video_frames: Frames that are kept of a video; longer ones have fewer a second. The data's `video_frames` are
            shown of them.
        workers: Processes that write; None takes as many as there are cores, at most 4.
    """

    lacks: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("cameras", "lidar", "radar", "perception", "boxes", "history", "future", "questions", "caption"),
        "conversations are no scenes",
    )

    def __init__(
        self,
        conversations: ConversationsPath,
        cache: str,
        media: str | None = None,
        split: Split = "all",
        columns: Mapping[str, str] | None = None,
        video_rate_hz: Annotated[float, Interval(ge=1e-6, le=1000)] = 2.0,
        video_frames: Steps = 64,
        workers: PerNode | None = None,
    ) -> None:
        self.conversations = Path(conversations)
        self.cache = Path(cache)
        self.reader = Reader(
            str(_root(self.conversations)),
            media,
            split,
            Sampling(video_rate_hz, video_frames),
            tuple((columns or {}).items()),
        )
        self.workers = workers or min(4, os.cpu_count() or 1)

    @functools.cached_property
    def items(self) -> list[Item]:
        """All rows. A file that cannot be read counts as one. Raises `SceneError` when there is none, and for a column
        that no file has.
        """
        files = find_files(self.conversations)
        _check_columns(self.conversations, files, self.reader.columns)
        items = [(str(path), row) for path in files for row in range(_count(path))]
        if not items:
            raise SceneError(f"{self.conversations}: its files hold no conversation; give others")
        return items

    @functools.cached_property
    def folder(self) -> Path:
        """The folder of the shards, whether or not they are written."""
        facts = (str(self.conversations.absolute()), self.reader)
        return self.cache / once_per_node(self.cache, facts, self._name)

    def _name(self) -> str:
        facts = (self._files(), self.reader, SCHEMA_VERSION, code_version(Reader))
        return f"conversations-{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}"

    def moved(self, conversations: Path, split: Split) -> ConversationShards:
        """Returns the same stream of other files and another split."""
        other = copy.copy(self)
        for name in ("items", "folder"):
            other.__dict__.pop(name, None)
        other.conversations = conversations
        other.reader = replace(self.reader, root=str(_root(conversations)), split=split)
        return other

    def work(self) -> Work[Item]:
        """Returns the rows to write as shards."""
        files = groupby(self.items, key=lambda item: item[0])
        groups = [(self.reader.split, len(list(rows))) for _, rows in files]
        return Work(self.items, self.reader.scenes, groups=groups)

    def identity(self, files: bool = True) -> dict[str, str]:
        """Returns what decides which scenes the rows become, by name: the `files`, and how they are read."""
        reader = {each.name: repr(getattr(self.reader, each.name)) for each in fields(self.reader)}
        facts = {**reader, "code": code_version(Reader)}
        return {"files": hashlib.sha256(repr(self._files()).encode()).hexdigest()[:12], **facts} if files else facts

    def _files(self) -> list[tuple[str, int, int]]:
        stats = {path: path.stat() for path in find_files(self.conversations)}
        return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()]

    def location(self) -> Location:
        """Returns where the shards are; writes them first if they are missing, in one of the processes that ask."""
        write_once(self.folder, self._write)
        return Location(str(self.folder), self.folder)

    def _write(self) -> Summary:
        try:
            return write_shards(self.work(), self.folder, self.workers)
        except SceneError as error:
            raise SceneError(
                f"{self.conversations}: split: {self.reader.split!r} of {len(self.items)} rows: {error}"
            ) from error

    def survey(self, count: int) -> Survey:
        """See `Source`: from the index where the shards are written, else about `count` rows from all over the files.

        Raises `SceneError` where none of these can be used.
        """
        statistics = read_statistics(self.folder / "index.json")
        if statistics is not None:
            return statistics.survey()
        share = {"train": 1 - 1 / HELD_OUT_ONE_IN, "held_out": 1 / HELD_OUT_ONE_IN, "all": 1.0}[self.reader.split]
        step = max(1, int(len(self.items) * share / count))
        scenes: list[Scene] = []
        problem = "none is in the split"
        for item in (item for start in range(step) for item in self.items[start::step]):
            try:
                scenes += self.reader.scenes(item)
            except (SceneError, OSError) as error:
                problem = str(error)
            if len(scenes) >= count:
                break
        if not scenes:
            raise SceneError(f"{self.conversations}: split: {self.reader.split!r}: no conversation; {problem}")
        return survey_of(scenes, max(1, round(len(self.items) * share)))


def _check_columns(place: Path, files: Sequence[Path], columns: Sequence[tuple[str, str]]) -> None:
    """Raises `SceneError` for a column that none of the first rows of `files` has, with the nearest that one has."""
    there: dict[str, None] = {}
    for path in files if columns else ():
        with contextlib.suppress(SceneError):  # which reading its rows raises again, where it is counted
            rows = open_rows(path)
            first = (rows.row(number) for number in range(min(LOOKED_AT, len(rows))))
            there |= {str(key): None for row in first if isinstance(row, Mapping) for key in row}
        if all(theirs in there for _, theirs in columns):
            return
    for ours, theirs in columns:
        if there and theirs not in there:
            near = nearest(theirs, there)
            meant = f" (did you mean {near}?)" if near else ""
            raise SceneError(f"{place}: columns.{ours}: no row has {theirs}{meant}; there are: {', '.join(there)}")


def _root(conversations: Path) -> Path:
    return conversations.parent if conversations.is_file() else conversations


def _count(path: Path) -> int:
    try:
        return len(open_rows(path))
    except SceneError:
        return 1  # reading the row raises it again, where it is counted
