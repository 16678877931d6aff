"""Comet: the experiment of a run, online where there is a key, else an archive to be uploaded later.

A thin logger of our own: Lightning's marks every offline experiment as disabled, so that it writes no archive.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from framework.run.folder import is_first_rank

log = logging.getLogger(__name__)


class Comet:
    """Experiments in `project` of `workspace` (None: the key's default). The key is read from COMET_API_KEY, never
    from a recipe. Where Comet cannot be reached, the rest of this process's metrics goes to archives.
    """

    def __init__(self, project: str, workspace: str | None = None) -> None:
        self.project = project
        self.workspace = workspace
        self.online = bool(os.environ.get("COMET_API_KEY"))

    def logger(self, run: str, folder: Path, attempt: int) -> CometLogger:
        """The logger of attempt `attempt` of the run `run` in folder `folder`; archives go to `folder`/comet."""
        return CometLogger(self, run, folder, attempt)


class CometLogger(Logger):
    """Metrics to one Comet experiment per run, continued by every attempt, every stage and every evaluation job.

    Archives may be uploaded in any order (`comet upload RUN/comet/*.zip`): each begins the experiment or goes on with
    it.
    """

    def __init__(self, comet: Comet, run: str, folder: Path, attempt: int) -> None:
        super().__init__()
        self.run = run
        self.attempt = attempt
        self.experiment = _start(comet, run, folder) if is_first_rank() else None

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run

    @property
    def version(self) -> int:
        """The attempt."""
        return self.attempt

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Logged once by `describe`, from the resolved recipe."""

    def describe(self, recipe: Mapping[str, Any], facts: Mapping[str, str], step: int) -> None:
        """Record what the run is: the resolved `recipe` as flat names and values, `facts` (name, attempt, seed, code's
        commit) and, as a metric over steps, that this attempt went on from `step`.
        """
        if self.experiment is not None:
            self.experiment.log_parameters(dict(recipe))
            self.experiment.log_others({**facts, f"attempt {self.attempt} went on from step": step})
            self.experiment.log_metrics({"attempt": self.attempt}, step=step)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Send `metrics` of optimizer step `step`."""
        if self.experiment is not None:
            self.experiment.log_metrics(metrics, step=step)

    @rank_zero_only
    def close(self) -> None:
        """Upload or archive what is left."""
        if self.experiment is not None:
            self.experiment.end()


def experiment_key(run: str, folder: Path) -> str:
    """32 to 50 letters and digits, as Comet wants them, equal for every attempt of the run in `folder`."""
    return hashlib.sha256(f"{run}/{folder.resolve()}".encode()).hexdigest()[:40]


def _by_chance(start: Callable[[bool], Any]) -> Callable[[bool], Any]:
    """`start` with random numbers of its own: it draws an archive's name, which would be the same in every attempt that
    begins with the run's seed, and the archive of the one before would be overwritten.
    """

    def with_own_numbers(online: bool) -> Any:
        state = random.getstate()
        random.seed()
        try:
            return start(online)
        finally:
            random.setstate(state)

    return with_own_numbers


def _start(comet: Comet, run: str, folder: Path) -> Any:
    os.environ["COMET_DISABLE_AUTO_LOGGING"] = "1"  # read when comet_ml is imported
    import comet_ml

    archives = folder / "comet"
    archives.mkdir(parents=True, exist_ok=True)

    @_by_chance
    def start(online: bool) -> Any:
        return comet_ml.start(
            workspace=comet.workspace,
            project=comet.project,
            experiment_key=experiment_key(run, folder),
            mode="get_or_create",
            online=online,
            experiment_config=comet_ml.ExperimentConfig(
                name=run,
                offline_directory=str(archives),
                log_code=False,  # the run's folder holds the diff
                log_git_patch=False,
                log_env_details=False,
                log_env_gpu=False,
                log_env_cpu=False,
                display_summary_level=0,
            ),
        )

    if comet.online:
        try:
            return start(True)
        except OSError as error:  # of the network; a key that is refused is told and ends the run
            log.warning("Comet cannot be reached (%s): metrics go to archives in %s", type(error).__name__, archives)
            comet.online = False
    return start(False)
