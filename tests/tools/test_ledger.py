"""What the ledger's tool tells of runs whose ledgers are known row by row."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.data.stream.cursor import Cursor, Position, RankSlice, steps_from
from framework.data.stream.ledger import ROW, Ledger, LedgerHeader, read_attempts
from framework.data.stream.mixture import Address, OpenMixture, Part, Shares, StreamInfo
from framework.data.stream.order import StreamOrder
from framework.model.backbone import RandomBackbone
from framework.run.layout import LEDGER
from tests.data.streams import Trial, pipeline, shares, write_texts
from tools.ledger import how_often, main, read

BATCH = 8
SIZES = {"common": 26, "rare": 11}
SHARES = {"common": 0.75, "rare": 0.25}
Plan = Sequence[tuple[int, int, int]]
"""Attempts: their world, and the steps before the first and up to the last."""
PLAIN: Plan = [(2, 0, 12)]
DISTURBED: Plan = [(2, 0, 7), (4, 5, 9), (1, 8, 12)]


def train(run: Path, plan: Plan, fingerprint: str = "same", lanes: int = 1) -> Path:
    """The run's folder with the ledger of those attempts, all ranks in step."""
    parts = {name: Part(cast(Any, None), {"answer": 1.0}, share) for name, share in SHARES.items()}
    orders = [StreamOrder(name, np.array([5, size - 5]), 7, lanes) for name, size in SIZES.items()]
    mixture = OpenMixture(parts, orders, [], Shares(parts, list(SIZES.values()), 1000), {})
    streams = [StreamInfo(name, size, fingerprint, SHARES[name]) for name, size in SIZES.items()]
    for attempt, (world, first, last) in enumerate(plan, 1):
        for rank in range(world):
            ledger = Ledger(run / LEDGER, LedgerHeader("sft", attempt, rank, world, BATCH, lanes, streams))
            walk = steps_from(
                mixture, Cursor(0, lanes, {name: Position() for name in SIZES}), RankSlice(BATCH, world, rank, lanes)
            )
            for step, (samples, _) in enumerate(itertools.islice(walk, first, last), first + 1):
                ledger.append(step, samples)
    return run


def asked(*arguments: object) -> tuple[int, str]:
    """The tool's status and what it printed, errors included."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        return main([str(argument) for argument in arguments]), printed.getvalue()


def file_of(run: Path, attempt: int = 1, rank: int = 0) -> Path:
    return run / LEDGER / f"sft.attempt-{attempt:04d}.rank-{rank:05d}.bin"


def table(printed: str, header: str) -> list[dict[str, str]]:
    """The rows of the table whose header begins so."""
    lines = printed.splitlines()
    begin = next(place for place, line in enumerate(lines) if line.startswith(header))
    names = lines[begin].split()
    rows = itertools.takewhile(lambda cells: len(cells) == len(names), map(str.split, lines[begin + 1 :]))
    return [dict(zip(names, cells, strict=True)) for cells in rows]


def total(rows: list[dict[str, str]], column: str) -> int:
    return sum(int(row[column].replace(",", "")) for row in rows)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Up to four attempts in worlds of any size, each of which resumes where a former one had come, or before."""
    plan: list[tuple[int, int, int]] = []
    reached = 0
    for _ in range(draw(st.integers(1, 4))):
        first = draw(st.integers(max(0, reached - 3), reached))
        reached = first + draw(st.integers(1, 5))
        plan.append((draw(st.sampled_from([1, 2, 4, 8])), first, reached))
    return plan


@pytest.mark.guarantee(
    "The ledger proves what was trained: `tools.ledger RUN` counts samples over all attempts, `--compare` two runs"
)
@settings(max_examples=30)
@given(plans())
@pytest.mark.slow
def test_attempts_that_resume_at_checkpoints_are_one_run_that_nothing_disturbed(plan: Plan) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = train(Path(folder) / "run", plan)
        plain = train(Path(folder) / "plain", [(1, 0, plan[-1][2])])
        status, printed = asked(run)
        assert status == 0
        assert "nothing repeated, nothing lost" in printed
        attempts, streams = table(printed, "attempt"), table(printed, "stream")
        assert [(a["ranks"], a["steps"]) for a in attempts] == [
            (str(w), f"{first + 1}-{last}") for w, first, last in plan
        ]
        written, trained = BATCH * sum(last - first for _, first, last in plan), BATCH * plan[-1][2]
        assert (total(attempts, "samples"), total(streams, "trained")) == (written, trained)
        assert total(attempts, "void") == total(streams, "void") == written - trained
        often = how_often(read(run)["sft"])
        assert {name: sum(samples.values()) for name, samples in often.items()} == SIZES
        assert [sum(n * samples for n, samples in often[s["stream"]].items()) for s in streams] == [
            int(s["trained"]) for s in streams
        ]
        assert asked(run, "--compare", plain) == (0, f"the same samples up to step {plan[-1][2]}\n")


@pytest.mark.guarantee(
    "The ledger proves what was trained: `tools.ledger RUN` counts samples over all attempts, `--compare` two runs"
)
@settings(max_examples=30)
@given(st.data())
@pytest.mark.slow
def test_a_sample_in_the_place_of_another_is_found_by_both_ways_of_asking(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        plain, forged = train(Path(folder) / "plain", PLAIN), train(Path(folder) / "forged", PLAIN)
        rows = np.fromfile(file_of(forged), dtype=ROW)
        passes = [(row["stream"], row["turn"]) for row in rows]
        alike = [(i, j) for i, j in itertools.permutations(range(len(rows)), 2) if passes[i] == passes[j]]
        place, other = data.draw(st.sampled_from(alike))
        was, now = rows[place].copy(), rows[other].copy()
        rows["sample"][place] = now["sample"]
        rows.tofile(file_of(forged))
        name = list(SIZES)[was["stream"]]
        status, printed = asked(forged)
        assert status == 1
        assert f"FAULT: stream {name}: 1 samples were repeated within a pass" in printed
        where = f"(stage sft, pass {was['turn']})"
        assert asked(plain, "--compare", forged) == (
            1,
            f"step {was['step']} is the first at which the runs trained different samples\n"
            f"  only {plain}: {name}/{was['sample']} {where}\n"
            f"  only {forged}: {name}/{now['sample']} {where}\n",
        )


@settings(max_examples=30)
@given(plans(), st.sampled_from([2, 4, 8]), st.integers(0, 60))
@pytest.mark.slow
def test_passes_that_end_earlier_in_shorter_lanes_lose_nothing(plan: Plan, lanes: int, before: int) -> None:
    longer = [(world, first + before * (at > 0), last + before) for at, (world, first, last) in enumerate(plan)]
    with tempfile.TemporaryDirectory() as folder:
        status, printed = asked(train(Path(folder), longer, lanes=lanes))
        assert (status, total(table(printed, "stream"), "lost")) == (0, 0)


@settings(max_examples=30)
@given(st.integers(1, 30), st.sampled_from([1, 2]), st.integers(0, 1))
def test_whichever_rank_is_killed_before_it_writes_down_the_last_step_nothing_is_lost(
    last: int, lanes: int, killed: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = train(Path(folder), [(2, 0, last)], lanes=lanes)
        rows = np.fromfile(file_of(run, rank=killed), dtype=ROW)
        rows[rows["step"] < last].tofile(file_of(run, rank=killed))
        assert asked(run)[0] == 0


def test_a_pass_that_lacks_samples_and_steps_that_lack_ranks_are_faults(tmp_path: Path) -> None:
    run = train(tmp_path / "run", PLAIN)
    rows = np.fromfile(file_of(run), dtype=ROW)
    rows[(rows["step"] != 2) & (rows["step"] != 3)].tofile(file_of(run))
    status, printed = asked(run)
    lost = {row["stream"]: int(row["lost"]) for row in table(printed, "stream")}
    assert status == 1
    assert sum(lost.values()) == 2 * BATCH // 2
    assert f"FAULT: stream common: {lost['common']} samples are missing from a pass" in printed
    assert "FAULT: 2 steps lack samples: 2, 3; copy the files of all ranks" in printed


def test_attempts_with_steps_missing_in_between_are_a_fault(tmp_path: Path) -> None:
    status, printed = asked(train(tmp_path, [(2, 0, 4), (2, 6, 8)]))
    assert status == 1
    assert "FAULT: 2 steps lack samples: 5, 6; copy" in printed


def test_a_last_step_that_a_killed_rank_did_not_write_down_is_no_fault(tmp_path: Path) -> None:
    run, plain = train(tmp_path / "run", PLAIN), train(tmp_path / "plain", PLAIN)
    rows = np.fromfile(file_of(run), dtype=ROW)
    rows[rows["step"] < 12].tofile(file_of(run))
    with file_of(run).open("ab") as file:
        file.write(b"half a row")
    assert asked(run)[0] == 0
    assert asked(run, "--compare", plain) == (0, "the same samples up to step 11\n")


@pytest.mark.parametrize(("stream", "number"), [("common", 3), ("common", 25), ("rare", 0), ("rare", 10)])
def test_a_sample_is_traced_through_all_attempts(stream: str, number: int, tmp_path: Path) -> None:
    run = train(tmp_path, DISTURBED)
    expected = []
    for attempt, (world, first, last) in enumerate(DISTURBED, 1):
        kept = min((begin for _, begin, _ in DISTURBED[attempt:]), default=last)
        for row in np.concatenate([np.fromfile(file_of(run, attempt, rank), dtype=ROW) for rank in range(world)]):
            assert first < row["step"] <= last
            if (list(SIZES)[row["stream"]], row["sample"]) == (stream, number):
                was = "trained" if row["step"] <= kept else "trained, void"
                expected.append((str(attempt), str(row["step"]), str(row["turn"]), was))
    status, printed = asked(run, "--sample", f"{stream}/{number}")
    found = [tuple(re.split(r"  +", line)[1:5]) for line in printed.splitlines()[1:]]
    assert status == 0
    assert sorted(found) == sorted(expected)
    assert expected


def test_quarantined_samples_are_counted_and_told_from_trained_ones(tmp_path: Path) -> None:
    run = train(tmp_path / "run", PLAIN)
    plain = train(tmp_path / "plain", PLAIN)
    rows = np.fromfile(file_of(run), dtype=ROW)
    rows["refused"][5] = 1
    rows.tofile(file_of(run))
    name = list(SIZES)[rows["stream"][5]]
    status, printed = asked(run)
    assert (status, total(table(printed, "stream"), "quarantined")) == (0, 1)
    often = how_often(read(run)["sft"])
    assert sum(n * samples for times in often.values() for n, samples in times.items()) == 12 * BATCH - 1
    assert "quarantined" in asked(run, "--sample", f"{name}/{rows['sample'][5]}")[1]
    status, printed = asked(plain, "--compare", run)
    assert status == 1
    assert f"only {run}: {name}/{rows['sample'][5]} (stage sft, pass 0, quarantined)" in printed


def test_every_change_of_the_mixture_is_told_with_its_attempt(tmp_path: Path) -> None:
    def write(attempt: int, first: int, batch: int, streams: list[StreamInfo], changes: list[str]) -> None:
        ledger = Ledger(tmp_path / LEDGER, LedgerHeader("sft", attempt, 0, 1, batch, 1, streams, changes))
        ledger.append(first, [Address(0, 0, number) for number in range(batch)])

    write(1, 1, 4, [StreamInfo("a", 9, "old", 0.5), StreamInfo("b", 9, "x", 0.5)], [])
    write(2, 2, 4, [StreamInfo("a", 9, "old", 0.75), StreamInfo("b", 9, "x", 0.25)], [])
    write(3, 3, 5, [StreamInfo("a", 8, "new", 0.75), StreamInfo("c", 9, "x", 0.25)], ["stream a has other data"])
    _, printed = asked(tmp_path)
    assert [line for line in printed.splitlines() if re.match(r"attempt \d", line)] == [
        "attempt 2: stream a has a share of 0.750 instead of 0.500",
        "attempt 2: stream b has a share of 0.250 instead of 0.500",
        "attempt 3: stream a has other data",
        "attempt 3: a step has 5 samples instead of 4",
    ]
    assert "a (old), samples by times trained: never 5, twice 4" in printed
    assert "a (new), samples by times trained: never 3, once 5" in printed
    assert "stream a had different data" in asked(tmp_path, "--sample", "a/0")[1]


def test_equal_numbers_of_other_data_are_not_the_same_samples(tmp_path: Path) -> None:
    one, other = train(tmp_path / "one", PLAIN), train(tmp_path / "other", PLAIN, fingerprint="another")
    status, printed = asked(one, "--compare", other)
    assert status == 1
    assert "stream common has other data or another order" in printed


def test_the_order_of_samples_within_a_step_makes_no_difference(tmp_path: Path) -> None:
    run, plain = train(tmp_path / "run", PLAIN), train(tmp_path / "plain", PLAIN)
    rows = np.fromfile(file_of(run), dtype=ROW)[::-1]
    rows.tofile(file_of(run))
    assert asked(run, "--compare", plain) == (0, "the same samples up to step 12\n")


def test_stages_follow_each_other_as_they_were_trained(tmp_path: Path) -> None:
    for stage, first in (("zero", 1), ("a-later", 4)):
        ledger = Ledger(tmp_path / LEDGER, LedgerHeader(stage, 1, 0, 1, 2, 1, [StreamInfo("s", 99, "x", 1.0)]))
        for step in range(first, first + 3):
            ledger.append(step, [Address(0, 0, 2 * step), Address(0, 0, 2 * step + 1)])
    status, printed = asked(tmp_path)
    assert status == 0
    assert re.findall(r"^stage (.+)$", printed, re.MULTILINE) == ["zero", "a-later"]
    assert asked(tmp_path, "--sample", "s/50") == (0, "s/50 was never trained\n")


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (["--sample", "none/3"], r"no stream 'none' .* \['common', 'rare'\]"),
        (["--sample", "3"], r"no stream ''"),
        (["--sample", "common/26"], r"'26' is not a sample of common; give a number from 0 to 25"),
        (["--sample", "common/x"], r"'x' is not a sample of common"),
        (["--compare", "absent"], r"absent/ledger: no ledger;"),
    ],
)
def test_what_cannot_be_answered_is_one_line(question: list[str], message: str, tmp_path: Path) -> None:
    status, printed = asked(train(tmp_path, PLAIN), *question)
    assert status == 1
    assert re.search(message, printed)
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("damage", "message"), [(None, "is missing"), ("", "is not a ledger header"), ('{"stage": "sft"}', "streams")]
)
def test_a_heading_that_is_gone_or_damaged_is_named(damage: str | None, message: str, tmp_path: Path) -> None:
    run = train(tmp_path, PLAIN)
    header = file_of(run).with_suffix(".json")
    header.unlink() if damage is None else header.write_text(damage)
    status, printed = asked(run)
    assert status == 1
    assert printed.startswith(str(header))
    assert message in printed
    assert printed.count("\n") == 1


@pytest.mark.slow
def test_it_reads_what_training_writes(tmp_path: Path) -> None:
    write_texts(tmp_path / "even", "even", 24)
    trial = Trial(
        shares({"even": tmp_path / "even"}), pipeline(), RandomBackbone({}).processor([]), tmp_path / "run", 8
    )
    trial.attempt(world=2, last=5)
    trial.attempt()
    status, printed = asked(tmp_path / "run")
    assert (status, [row["steps"] for row in table(printed, "attempt")]) == (0, ["1-5", "4-8"])
    (stream,) = table(printed, "stream")
    assert (stream["trained"], stream["void"], stream["distinct"]) == ("64", "16", "24")


def test_a_ledger_survives_a_cut_at_every_byte(tmp_path: Path) -> None:
    streams = [StreamInfo("world", 9, "x", 1.0)]
    header = LedgerHeader("sft", 1, 0, 1, 2, 1, streams)
    ledger = Ledger(tmp_path, header)
    ledger.append(1, [Address(0, 0, 3), Address(0, 0, 4)])
    whole = ledger.path.read_bytes()
    for cut in range(len(whole) + 1):
        ledger.path.write_bytes(whole[:cut])
        saved = [3, 4][: cut // ROW.itemsize]
        assert read_attempts(tmp_path)["sft"][0].rows["sample"].tolist() == saved
        Ledger(tmp_path, header).append(2, [Address(0, 0, 5)])
        assert read_attempts(tmp_path)["sft"][0].rows["sample"].tolist() == [*saved, 5]
