"""The task that writes a benchmark's submission from predictions."""

from __future__ import annotations

from pathlib import Path

from framework.evaluation.predictions import read_parts
from framework.evaluation.submissions.plans import Submission, plans_of
from framework.recipe.component import component
from framework.run.console import show_rows
from framework.run.folder import RunFolder
from framework.run.layout import PREDICTIONS


@component
class Submit:
    """Writes a submission in a benchmark's form, and reads it back.

    Plans are those of `recipe=predict`, which is batched and can be killed; a scene's name in the source is the token
    or frame of the benchmark. An agent, which the benchmark runs itself, needs none.

    Raises `ValueError` for a form of plans without predictions.

    Args:
        form: The benchmark's form.
        folder: Where to write.
        run: The folder of the run of `recipe=predict`; null for an agent.
    """

    def __init__(self, form: Submission, folder: str, run: str | None = None) -> None:
        self.form, self.folder = form, Path(folder)
        self.predictions = None if run is None else Path(run) / PREDICTIONS

    def run(self, run: RunFolder) -> Path:
        """Write; returns the folder."""
        if self.form.needs_plans and self.predictions is None:
            raise ValueError("task.run: is missing; give the folder of a run of recipe=predict with the task drive")
        plans = plans_of(read_parts(self.predictions)) if self.predictions is not None else {}
        self.folder.mkdir(parents=True, exist_ok=True)
        files = self.form.write(plans, self.folder)
        show_rows({"read back": self.form.check(plans, self.folder), **{file.name: str(file) for file in files}})
        return self.folder
