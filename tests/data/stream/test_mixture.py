"""Streams mixed in proportion: the shares that are asked for are had, and a mixture that changes says what changed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.data.render.tasks import Answer, Caption, Task
from framework.data.shards.writer import Work, write_shards
from framework.data.stream.address import Address
from framework.data.stream.cursor import Cursor, Position, RankSlice, start_cursor, steps_from
from framework.data.stream.ledger import read_attempts, tally
from framework.data.stream.mixture import Mixture, OpenMixture, Part, Shards, Shares, read_scenes
from framework.data.stream.order import StreamOrder
from framework.scene.types import Scene, SceneError
from framework.scene.world.generate import generate_scene
from tests.data.streams import Trial, pipeline, write_texts
from tests.data.streams import shares as mixture_of

NOWHERE = Shards(local="nowhere")
TASKS: dict[str, Task] = {"answer": Answer(), "caption": Caption()}


def part(tasks: Mapping[str, float] | None = None, **share: Any) -> Part:
    return Part(NOWHERE, {"answer": 1.0} if tasks is None else tasks, **share)


def at(parts: Mapping[str, Part], step: int = 0, sizes: list[int] | None = None, samples: int = 1000) -> list[float]:
    return Shares(parts, sizes or [100] * len(parts), samples).at(step).tolist()


# Shares


def test_proportions_are_relative_and_one_is_taken_where_none_is_given() -> None:
    parts = {"a": part(proportion=3.0), "b": part(proportion=0.5), "c": part()}
    assert at(parts) == pytest.approx([3 / 4.5, 0.5 / 4.5, 1 / 4.5])


def test_passes_and_samples_are_shares_of_the_stage_and_proportions_divide_the_rest() -> None:
    parts = {
        "a": part(samples=100),
        "b": part(passes=1.5),
        "c": part(proportion=1.0),
        "d": part(proportion=3.0),
    }
    assert at(parts, sizes=[7, 200, 9, 9]) == pytest.approx([0.1, 0.3, 0.15, 0.45])


def test_passes_and_samples_are_relative_where_nothing_has_a_proportion() -> None:
    parts = {"a": part(samples=100), "b": part(passes=3.0)}
    for samples in (10, 400, 1_000_000):
        assert at(parts, sizes=[5, 100], samples=samples) == pytest.approx([0.25, 0.75])


def test_a_schedule_is_linear_between_its_steps_and_constant_outside_of_them() -> None:
    parts = {"a": part(proportion={10: 0.0, 30: 1.0}), "b": part(proportion=1.0)}
    found = [at(parts, step)[0] for step in (0, 10, 20, 30, 500)]
    assert found == pytest.approx([0.0, 0.0, 1 / 3, 0.5, 0.5])
    backwards = {"a": part(proportion={30: 1.0, 10: 0.0}), "b": part(proportion=1.0)}
    assert [at(backwards, step)[0] for step in (0, 10, 20, 30, 500)] == pytest.approx(found)


def test_a_schedule_divides_what_counted_streams_leave() -> None:
    parts = {"a": part(samples=500), "b": part(proportion={0: 1.0, 10: 0.0}), "c": part(proportion={0: 0.0, 10: 1.0})}
    assert at(parts, 0) == pytest.approx([0.5, 0.5, 0.0])
    assert at(parts, 10) == pytest.approx([0.5, 0.0, 0.5])


def test_schedules_that_leave_a_step_without_any_stream_are_refused() -> None:
    parts = {"a": part(proportion={0: 1.0, 10: 0.0}), "b": part(proportion={10: 0.0, 20: 1.0})}
    with pytest.raises(ValueError, match=r"\['a', 'b'\] are all 0 at step 10.*before the other ends"):
        at(parts)
    assert at(parts | {"b": part(proportion={9: 0.0, 20: 1.0})}, 10) == pytest.approx([0.0, 1.0])


POSITIVE = st.floats(0.01, 10.0)
GIVEN = st.one_of(
    st.builds(lambda value: {"proportion": value}, POSITIVE),
    st.builds(lambda one, two: {"proportion": {0: one, 50: two}}, POSITIVE, POSITIVE),
    st.builds(lambda value: {"passes": value / 100}, POSITIVE),
    st.builds(lambda value: {"samples": value}, st.integers(1, 20)),
)


@given(st.lists(GIVEN, min_size=1, max_size=8), st.integers(0, 100))
def test_shares_are_positive_and_their_sum_is_one(given: list[dict[str, Any]], step: int) -> None:
    found = at({str(i): part(**share) for i, share in enumerate(given)}, step)
    assert min(found) > 0
    assert sum(found) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("share", "complaint"),
    [
        ({"proportion": 0.0}, r"some\.proportion: 0\.0; make it positive, or remove the stream"),
        ({"proportion": -1.0}, r"some\.proportion: -1\.0; make it positive"),
        ({"proportion": float("nan")}, r"some\.proportion: nan; make it positive"),
        ({"proportion": {}}, r"some\.proportion: \{\}; make it positive"),
        ({"proportion": {0: 0.0, 9: 0.0}}, r"some\.proportion: .*; make it positive"),
        ({"proportion": {0: 1.0, 9: -1.0}}, r"some\.proportion: .*; make it positive"),
        ({"passes": 0.0}, r"some\.passes: 0\.0; make it positive"),
        ({"samples": -3}, r"some\.samples: -3; make it positive"),
        ({"proportion": 1.0, "samples": 3}, r"some: proportion and samples are given; .* one of them"),
        ({"passes": 1.0, "samples": 3}, r"some: passes and samples are given"),
        ({"tasks": {}}, r"some\.tasks: empty; name at least one task with its weight"),
        ({"tasks": {"answer": None}}, r"some\.tasks: empty"),
        ({"tasks": {"answer": 0.0}}, r"some\.tasks\.answer: weight 0\.0; make it positive"),
        ({"tasks": {"answer": -1.0}}, r"some\.tasks\.answer: weight -1\.0; make it positive"),
    ],
)
def test_a_share_that_makes_no_sense_is_refused_by_name(share: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=rf"mixture\.parts\.{complaint}"):
        Mixture({"other": part(), "some": part(**share)})


def test_a_mixture_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mixture\.parts: empty; name at least one stream"):
        Mixture({})


@pytest.mark.parametrize("samples", [100, 99])
def test_counted_streams_that_leave_nothing_for_the_others_are_refused_by_their_names(samples: int) -> None:
    parts = {"a": part(samples=60), "b": part(passes=0.4), "c": part(), "d": part(proportion=2.0)}
    with pytest.raises(ValueError, match=rf"take 100 of the stage's {samples} samples.*none for \['c', 'd'\]"):
        at(parts, samples=samples)


@pytest.mark.slow
def test_a_task_that_is_null_is_never_drawn(streams: dict[str, Path]) -> None:
    source = Shards(local=streams["common"])
    alone, beyond = (
        Mixture({"common": Part(source, tasks)}).open(TASKS, 0, 8)
        for tasks in ({"answer": 1.0}, {"caption": None, "answer": 1.0})
    )
    assert alone.weights == beyond.weights == [{"answer": 1.0}]


def _world(seed: int) -> Iterator[Scene]:
    yield generate_scene(seed, "intersection")


def test_two_parts_of_one_source_show_different_inputs(tmp_path: Path) -> None:
    source = Shards(local=tmp_path / "world")
    write_shards(Work([0], _world), tmp_path / "world", quiet=True)
    parts = {"all": Part(source, {"answer": 1.0}), "cheap": Part(source, {"answer": 1.0}, inputs=["boxes"])}
    opened = Mixture(parts).open(TASKS, 0, 8)
    shown = [opened.read(Address(stream, 0, 0)) for stream in (0, 1)]
    (whole, *_), (cheap, *_) = shown
    assert whole.radar is not None
    assert cheap.radar is None
    assert len(cheap.perception) == len(whole.perception)


@pytest.mark.slow
def test_an_unknown_task_is_refused_with_those_that_there_are(streams: dict[str, Path]) -> None:
    mixture = Mixture({"common": Part(Shards(local=streams["common"]), {"answer": 1.0, "sing": 1.0})})
    with pytest.raises(ValueError, match=r"common\.tasks: \['sing'\] are not tasks; there are \['answer', 'caption'\]"):
        mixture.open(TASKS, 0, 8)


@pytest.mark.parametrize(
    ("place", "complaint"),
    [
        ({}, "either local"),
        ({"local": "here", "remote": "s3://there/x", "cache": "c"}, "either local"),
        ({"remote": "s3://there/x"}, "s3://there/x needs cache"),
    ],
)
def test_a_stream_is_somewhere_and_in_one_place(place: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Shards(**place)


# Counts


def unread(given: list[dict[str, Any]], lanes: int, samples: int = 1000) -> OpenMixture:
    """A mixture whose order can be asked for, without shards."""
    parts = {str(i): part(**share) for i, share in enumerate(given)}
    orders = [StreamOrder(name, np.array([5, 9]), 0, lanes) for name in parts]
    return OpenMixture(parts, orders, [], Shares(parts, [14] * len(parts), samples), {})


def walk(mixture: OpenMixture, lanes: int, slots: int, count: int) -> list[tuple[np.ndarray, Cursor]]:
    """How many samples of each stream every step has, and the cursor after it."""
    cursor = Cursor(0, lanes, {name: Position() for name in mixture.names})
    found = itertools.islice(steps_from(mixture, cursor, RankSlice(lanes * slots, lanes=lanes)), count)
    return [
        (np.bincount([address.stream for address in step], minlength=len(mixture.names)), after)
        for step, after in found
    ]


@given(st.lists(GIVEN, min_size=1, max_size=6), st.integers(1, 3), st.integers(1, 9))
@pytest.mark.slow
def test_counts_follow_the_shares_at_every_step(given: list[dict[str, Any]], lanes: int, slots: int) -> None:
    """In each lane less than one sample ahead; and not more behind than the most that the largest debt first can owe:
    1/2 + ... + 1/n for n streams, which is below one up to three and slightly above for a few more.
    """
    mixture = unread(given, lanes)
    counts, due = np.zeros(len(given)), np.zeros(len(given))
    most = sum(1 / n for n in range(2, len(given) + 1))
    for step, (drawn, after) in enumerate(walk(mixture, lanes, slots, 40)):
        assert drawn.sum() == lanes * slots
        counts += drawn
        due += lanes * slots * mixture.shares.at(step)
        assert (counts - due).max() < lanes * (1 + 1e-9)
        assert (due - counts).max() <= lanes * (most + 1e-9)
        assert [after.streams[name].taken * lanes for name in mixture.names] == counts.tolist()


def test_a_stage_has_as_many_samples_of_a_stream_as_were_asked_for() -> None:
    mixture = unread([{"samples": 37}, {"passes": 2.5}, {"proportion": 1.0}], lanes=1, samples=400)
    counts = np.sum([drawn for drawn, _ in walk(mixture, 1, 8, 50)], axis=0)
    assert counts.tolist() == pytest.approx([37, 2.5 * 14, 400 - 37 - 35], abs=1)


def test_every_lane_has_the_same_streams_in_the_same_order() -> None:
    mixture = unread([{"proportion": 5.0}, {"proportion": 2.0}], lanes=3)
    cursor = Cursor(0, 3, {name: Position() for name in mixture.names})
    for step, _ in itertools.islice(steps_from(mixture, cursor, RankSlice(3 * 7, lanes=3)), 5):
        lanes = [[address.stream for address in step[lane * 7 : lane * 7 + 7]] for lane in range(3)]
        assert lanes[0] == lanes[1] == lanes[2]


# Changes on resume


@pytest.fixture
def more(streams: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """The two streams, and one that comes later."""
    write_texts(tmp_path / "late", "late", 9)
    return {**streams, "late": tmp_path / "late"}


def trial_of(mixture: Mixture, processor: Any, folder: Path) -> Trial:
    return Trial(mixture, pipeline(), processor, folder, steps=12)


@pytest.mark.guarantee("A changed mixture is logged and entered in the ledger; streams keep their positions by name")
@pytest.mark.slow
def test_streams_that_come_go_and_come_again_are_told_of_and_keep_their_positions(
    more: dict[str, Path], processor: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both, common, all_three = (
        mixture_of({name: more[name] for name in names})
        for names in (("common", "rare"), ("common",), ("common", "rare", "late"))
    )
    trial = trial_of(both, processor, tmp_path)
    trial.attempt(last=3)
    trial.mixture = common
    trial.attempt(last=6)
    trial.mixture = all_three
    trial.attempt(last=9)
    trial.attempt(last=12)

    attempts = read_attempts(tmp_path / "ledger")["sft"]
    assert [attempt.header.changes for attempt in attempts] == [
        [],
        ["stream rare is no longer in the mixture"],
        ["stream rare is back: it continues where it stopped", "stream late is new: it starts at its first sample"],
        [],
    ]
    warned = [record.getMessage() for record in caplog.records if "mixture changed" in record.getMessage()]
    assert len(warned) == 3
    found = {one.stream: one for one in tally(attempts)}
    assert {name: one.trained for name, one in found.items()} == {"common": 12 + 24 + 16, "rare": 12 + 16, "late": 16}
    assert {(one.repeated, one.lost) for one in found.values()} == {(0, 0)}, "each goes on where it stood"


def test_a_stream_that_returns_goes_on_where_it_stood(streams: dict[str, Path]) -> None:
    both = mixture_of(streams).open(TASKS, 7, 800)
    alone = mixture_of({"common": streams["common"]}).open(TASKS, 7, 800)
    cursor, _ = start_cursor(both, 1)
    (_, after) = next(steps_from(both, cursor, RankSlice(8)))
    without, told = start_cursor(alone, 1, after)
    assert told == ["stream rare is no longer in the mixture"]
    (_, later) = next(steps_from(alone, without, RankSlice(8)))
    _, told = start_cursor(alone, 1, later)
    assert told == [], "it is told once"
    again, told = start_cursor(both, 1, later)
    assert told == ["stream rare is back: it continues where it stopped"]
    assert again.streams["rare"] == after.streams["rare"]
    assert (again.streams["common"].taken, again.step) == (4 + 8, 2)


def test_a_stream_whose_data_changed_restarts_and_says_so(
    more: dict[str, Path], processor: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trial = trial_of(mixture_of({"common": more["common"], "rare": more["rare"]}), processor, tmp_path)
    trial.attempt(last=3)
    trial.mixture = mixture_of({"common": more["common"], "rare": more["late"]})
    trial.attempt(last=6)
    told = "stream rare has other data or another order than before: it restarts from its first sample"
    assert f"the mixture changed since the checkpoint: {told}" in caplog.text
    first, second = read_attempts(tmp_path / "ledger")["sft"]
    assert second.header.changes == [told]
    of_rare = second.rows[second.rows["stream"] == 1]
    assert sorted(of_rare["turn"])[0] == 0
    assert sorted(of_rare["sample"][of_rare["turn"] == 0]) == list(range(9)), "from its first pass on"
    assert dataclasses.replace(first.header.streams[0], share=0) == dataclasses.replace(
        second.header.streams[0], share=0
    )


@pytest.mark.parametrize("change", [{"seed": 8}, {"shuffle_block": 4}])
def test_another_order_of_the_same_data_restarts(change: dict[str, int], streams: dict[str, Path]) -> None:
    opened = mixture_of(streams).open(TASKS, 7, 800)
    _, after = next(steps_from(opened, start_cursor(opened, 1)[0], RankSlice(8)))
    other = mixture_of(streams).open(**{"tasks": TASKS, "seed": 7, "samples": 800} | change)  # type: ignore[arg-type]
    cursor, told = start_cursor(other, 1, after)
    assert told == [
        f"stream {name} has other data or another order than before: it restarts from its first sample"
        for name in streams
    ]
    assert {position.taken for position in cursor.streams.values()} == {0}


def test_shares_may_change_without_a_stream_restarting(streams: dict[str, Path]) -> None:
    opened = mixture_of(streams).open(TASKS, 7, 800)
    _, after = next(steps_from(opened, start_cursor(opened, 1)[0], RankSlice(8)))
    cursor, told = start_cursor(mixture_of(streams, common=9.0).open(TASKS, 7, 1600), 1, after)
    assert told == []
    assert cursor == after


def test_other_canonical_nodes_than_the_checkpoint_s_are_refused_by_name(
    streams: dict[str, Path], processor: Any, tmp_path: Path
) -> None:
    trial = trial_of(mixture_of(streams), processor, tmp_path)
    trial.attempt(last=3)
    trial.pipeline = pipeline(canonical_nodes=2)
    with pytest.raises(ValueError, match=r"data\.canonical_nodes: 2, but the checkpoint's order has 1; keep that"):
        trial.attempt()


# Reading once through


def test_scenes_are_read_once_through_and_in_the_order_they_were_written(streams: dict[str, Path]) -> None:
    for name, count in (("common", 26), ("rare", 11)):
        source = Shards(local=streams[name])
        names = [f"{name}-{index}" for index in range(count)]
        assert [scene.id for scene in read_scenes(source)] == names
        assert [scene.id for scene in read_scenes(source, 5)] == names[:5]
        survey = source.survey(5)
        assert survey.samples == count
        assert survey.outlines
        assert {scene.id for _, scene in survey.outlines} <= set(names)
        assert [scene.id for scene in read_scenes(source, 99)] == names
        assert list(read_scenes(source, 0)) == []


def test_reading_once_through_leaves_no_scene_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.data.shards.record.SCHEMA_VERSION", 99)
    write_texts(tmp_path / "newer", "newer", 3)
    monkeypatch.undo()
    with pytest.raises(SceneError, match="record newer-0: schema: version 99"):
        list(read_scenes(Shards(local=tmp_path / "newer")))
