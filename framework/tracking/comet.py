"""Comet: one experiment per run, online where there is a key, else as archives to upload later.

Lightning's own logger marks every offline experiment as disabled, so that no archive is written.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from framework.recipe.component import component
from framework.recipe.credentials import masked
from framework.run.folder import is_first_rank

log = logging.getLogger(__name__)


@component
class Comet:
    """Comet experiments. The key is read from COMET_API_KEY, never from a recipe. If Comet cannot be reached, this
    process writes archives instead.

    Args:
        project: The project of the experiments.
        workspace: The project's workspace; None for the key's default.
    """

    def __init__(self, project: str, workspace: str | None = None) -> None:
        self.project = project
        self.workspace = workspace
        self.online = bool(os.environ.get("COMET_API_KEY"))

    def logger(self, run: str, folder: Path, attempt: int) -> CometLogger:
        """The logger of an attempt of the run in `folder`. Archives go to its subfolder `comet`."""
        return CometLogger(self, run, folder, attempt)


class CometLogger(Logger):
    """Sends metrics to the run's one experiment, which every attempt, stage and evaluation job continues.

    Archives can be uploaded in any order (`comet upload RUN/comet/*.zip`): each creates the experiment or continues it.
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
        """Does nothing: `describe` logs the resolved recipe once."""

    def describe(self, recipe: Mapping[str, Any], facts: Mapping[str, str], step: int) -> None:
        """Record the run: the resolved `recipe` as flat names and values, `facts` (name, attempt, seed, the code's
        commit) and, as a metric over steps, that this attempt started from `step`.
        """
        if self.experiment is not None:
            self.experiment.log_parameters({name: _told(value) for name, value in recipe.items()})
            told = {name: _told(value) for name, value in facts.items()}
            self.experiment.log_others({**told, f"attempt {self.attempt} went on from step": step})
            self.experiment.log_metrics({"attempt": self.attempt}, step=step)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Send `metrics` of optimizer step `step`."""
        if self.experiment is not None:
            self.experiment.log_metrics(metrics, step=step)

    @rank_zero_only
    def close(self) -> None:
        """Upload or archive what is pending."""
        if self.experiment is not None:
            self.experiment.end()


def _told(value: Any) -> Any:
    """A value as it may leave: text without secrets."""
    return masked(value) if isinstance(value, str) else value


def experiment_key(run: str, folder: Path) -> str:
    """The experiment's key, equal for all attempts of the run in `folder`. Comet wants 32 to 50 letters and digits."""
    return hashlib.sha256(f"{run}/{folder.resolve()}".encode()).hexdigest()[:40]


@contextmanager
def _fresh_randomness() -> Iterator[None]:
    """A random state of its own. comet_ml draws numbers when it is imported and when it names an archive: they would be
    missing in the run, and under the run's seed each attempt would overwrite the previous archive.
    """
    state = random.getstate()
    random.seed()
    try:
        yield
    finally:
        random.setstate(state)


def _start(comet: Comet, run: str, folder: Path) -> Any:
    # Both are read when comet_ml is imported. Its error tracker sends tracebacks to a third party, from threads that
    # draw the run's random numbers.
    os.environ["COMET_DISABLE_AUTO_LOGGING"] = "1"
    os.environ["COMET_ERROR_TRACKING_ENABLE"] = "false"
    with _fresh_randomness():
        import comet_ml
    archives = folder / "comet"
    archives.mkdir(parents=True, exist_ok=True)

    @_fresh_randomness()
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
        except OSError as error:  # of the network; a refused key raises another error, and ends the run
            log.warning("Comet cannot be reached (%s): metrics go to archives in %s", type(error).__name__, archives)
            comet.online = False
    return start(False)
