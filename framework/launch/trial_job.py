"""A trial inside its job: the run reports to the study itself, so that a search outlives the process that started it.

Whoever submits the run leaves `trial.json` in its folder, which says where the study is. The first rank reports each
figure to Optuna's storage and writes the verdict to `trial.jsonl`, where the other ranks read it: all of them end
together. How a run that failed ends is the scheduler's matter: it may start again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from framework.launch.study import hear, open_storage, pruner, tell, tell_result
from framework.run.files import append_line, read_json, read_records, write_json
from framework.run.layout import TRIAL_FILE, VERDICTS_FILE
from framework.run.trial import Pruned, reporting_to

if TYPE_CHECKING:
    import optuna

VERDICT_TIMEOUT_S = 600.0
"""How long (s) a rank waits for the first one's verdict. The storage is a file that other nodes lock, too."""
POLL_S = 0.2


@dataclass(frozen=True)
class TrialLink:
    """The study of which a run is a trial."""

    storage: str
    """Where the study is kept, see `framework.launch.study.Study.storage`."""
    study: str
    """Its name there."""
    trial: int
    """Optuna's id of the trial in the storage."""
    metric: str
    """The figure that is searched for."""
    prune: bool
    """Whether a trial that is worse than the median ends."""

    def save(self, folder: Path) -> None:
        """Leave the link in the folder of the trial's run."""
        write_json(folder / TRIAL_FILE, asdict(self))


@contextmanager
def reporting_to_study(folder: Path, attempt: int) -> Iterator[None]:
    """Report the figures of the trial in `folder` to its study, and how it ended; nothing where the trial has ended
    before. A pruned run ends like a complete one.
    """
    link = TrialLink(**read_json(folder / TRIAL_FILE))
    if int(os.environ.get("RANK") or 0):
        try:
            with reporting_to(_Follower(link, folder, attempt)):
                yield
        except Pruned:
            pass
        return
    study, trial = _open(link)
    if trial is None:
        yield
        return
    first = _First(link, folder, attempt, trial)
    import optuna

    try:
        with reporting_to(first):
            yield
        tell_result(study, trial, link.metric, first.figures)
    except Pruned as error:
        tell(study, trial, optuna.trial.TrialState.PRUNED, note=str(error))


def _open(link: TrialLink) -> tuple[optuna.Study, optuna.trial.Trial | None]:
    import optuna

    study = optuna.load_study(study_name=link.study, storage=open_storage(link.storage), pruner=pruner())
    known = {frozen._trial_id: frozen for frozen in study.get_trials(deepcopy=False)}
    ended = link.trial not in known or known[link.trial].state.is_finished()
    return study, None if ended else optuna.trial.Trial(study, link.trial)


class _First:
    """The first rank's reports."""

    def __init__(self, link: TrialLink, folder: Path, attempt: int, trial: optuna.trial.Trial) -> None:
        self.link, self.folder, self.attempt, self.trial = link, folder, attempt, trial
        self.figures: list[float] = []

    def __call__(self, reported: Mapping[str, float], step: int) -> None:
        if self.link.metric not in reported:
            return
        verdict = None
        try:
            hear(self.trial, self.link.metric, self.link.prune, self.figures, reported, step)
        except Pruned as error:
            verdict = str(error)
            raise
        finally:
            entry = {"attempt": self.attempt, "report": len(self.figures), "pruned": verdict}
            append_line(self.folder / VERDICTS_FILE, json.dumps(entry))


class _Follower:
    """Another rank, which does what the first one decides at the same report."""

    def __init__(self, link: TrialLink, folder: Path, attempt: int) -> None:
        self.link, self.folder, self.attempt = link, folder, attempt
        self.reports = 0

    def __call__(self, reported: Mapping[str, float], step: int) -> None:
        if self.link.metric not in reported:
            return
        self.reports += 1
        end = time.monotonic() + VERDICT_TIMEOUT_S
        while time.monotonic() < end:
            for entry in read_records(self.folder / VERDICTS_FILE):
                if (entry["attempt"], entry["report"]) == (self.attempt, self.reports):
                    if entry["pruned"]:
                        raise Pruned(entry["pruned"])
                    return
            time.sleep(POLL_S)
        raise TimeoutError(f"{self.folder / VERDICTS_FILE}: the first rank's verdict on step {step} is missing")
