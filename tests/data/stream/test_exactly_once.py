"""Every sample is trained exactly once, whatever happens: attempts that end badly, in worlds of other sizes, against
the run that nothing disturbed. The ledger is the witness, and what was handed out is the ledger's.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from framework.data.stream.ledger import first_difference, read_attempts, tally
from framework.data.stream.mixture import Mixture
from tests.data.streams import Trial, pipeline, shares, write_texts

STEPS = 11
ENDS = {  # how the first attempt ends: at which step, and by what
    "mid-epoch": (2, ""),
    "at the boundary": (3, ""),
    "second epoch": (5, ""),
    "by exception": (7, "exception"),
    "by kill -9": (8, "kill -9"),
}
WORLDS = {"1 -> 1": (1, 1), "1 -> 2": (1, 2), "2 -> 1": (2, 1), "2 -> 4": (2, 4)}
MATRIX = list(itertools.product((0, 2), (None, 400), (8, 2), ENDS, WORLDS, (1, 2)))
EVERY_KIND = [case for number, case in enumerate(MATRIX) if number % 49 == 0]
EVERY_PAIR = [case for number, case in enumerate(MATRIX) if number % 7 == 0 and case not in EVERY_KIND]
"""Cases in which any two of the choices meet: 7 divides none of their numbers."""


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    """A stream whose pass is three steps of eight."""
    folder = tmp_path_factory.mktemp("stream")
    write_texts(folder / "even", "even", 24)
    return shares({"even": folder / "even"})


@pytest.fixture(scope="module")
def undisturbed(mixture: Mixture, processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """The run that everything is compared with."""
    trial = Trial(mixture, pipeline(), processor, tmp_path_factory.mktemp("undisturbed"), STEPS)
    trial.attempt()
    return trial


def disturbed(case: tuple[Any, ...], undisturbed: Trial, folder: Path) -> None:
    """Two attempts, the first cut short; together they are the undisturbed run."""
    workers, pack, micro_batch, end, worlds, replicas = case
    how = pipeline(workers=workers, pack=pack, micro_batch=micro_batch)
    trial = Trial(undisturbed.mixture, how, undisturbed.processor, folder, STEPS)
    (first, second), (last, ends) = WORLDS[worlds], ENDS[end]
    trial.attempt(first, replicas, last, ends)
    trial.attempt(second, replicas)
    attempts = read_attempts(folder / "ledger")["sft"]
    assert first_difference(attempts, read_attempts(undisturbed.folder / "ledger")["sft"]) is None
    (found,) = tally(attempts)
    assert (found.trained, found.repeated, found.lost, found.quarantined) == (8 * STEPS, 0, 0, 0)
    for step, names in trial.seen.items():
        assert sorted(names) == sorted(undisturbed.seen[step])


@pytest.mark.guarantee("Every sample is trained exactly once, for any number of ranks and restarts")
@pytest.mark.parametrize("case", EVERY_KIND, ids=str)
@pytest.mark.fast_cases(2)
def test_no_sample_is_lost_or_repeated(case: tuple[Any, ...], undisturbed: Trial, tmp_path: Path) -> None:
    disturbed(case, undisturbed, tmp_path)


@pytest.mark.guarantee("Every sample is trained exactly once, for any number of ranks and restarts")
@pytest.mark.slow
@pytest.mark.parametrize("case", EVERY_PAIR, ids=str)
def test_no_sample_is_lost_or_repeated_wherever_two_of_the_choices_meet(
    case: tuple[Any, ...], undisturbed: Trial, tmp_path: Path
) -> None:
    disturbed(case, undisturbed, tmp_path)


def test_a_run_that_trained_a_sample_twice_is_told_from_one_that_did_not(undisturbed: Trial, tmp_path: Path) -> None:
    """The witness can tell: a ledger with one sample replaced by another differs, repeats one and lacks one."""
    from framework.data.stream.ledger import ROW

    (path,) = (undisturbed.folder / "ledger").glob("*.bin")
    data = bytearray(path.read_bytes())
    size = ROW.itemsize
    data[3 * size : 4 * size] = data[4 * size : 5 * size]
    (tmp_path / path.name).write_bytes(data)
    (tmp_path / path.with_suffix(".json").name).write_bytes(path.with_suffix(".json").read_bytes())
    forged = read_attempts(tmp_path)["sft"]
    assert first_difference(forged, read_attempts(undisturbed.folder / "ledger")["sft"]) == 1
    (found,) = tally(forged)
    assert (found.repeated, found.lost) == (1, 1)
