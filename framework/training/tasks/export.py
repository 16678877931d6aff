"""The task that writes a trained model as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch import seed_everything

from framework.model.hf_export import export
from framework.recipe.component import component
from framework.run.console import show_rows
from framework.run.folder import RunFolder
from framework.training.tasks.trained_run import TrainedRun


@component
class Export:
    """Exports a checkpoint of a run for plain transformers: the backbone with adapters merged into it, the processor,
    and the sensor encoders in files of their own (see `framework.model.hf_export`).

    The model is the one of the run's own recipe.

    Args:
        folder: Where to write.
        run: The folder of the run to export. Its newest checkpoint that verifies is used.
        checkpoint: The checkpoint's folder, RUN/checkpoints/step-N.attempt-A, instead of `run`.
    """

    def __init__(self, folder: str, run: str | None = None, checkpoint: str | None = None) -> None:
        self.folder = Path(folder)
        self.trained = TrainedRun(run, checkpoint)

    def run(self, run: RunFolder) -> Path:
        """Export; returns the folder."""
        seed_everything(run.seed, verbose=False)
        _, train = self.trained.recipe(inputs=False)  # a machine that exports has the run's folder, not its data
        model = train.model(special_tokens=train.data.special_tokens, initialize=False)
        model.materialize(torch.device("cpu"))
        checkpoint = self.trained.checkpoint()
        self.trained.load_weights(checkpoint, model)
        export(model, self.folder)
        show_rows({"exported": f"step {checkpoint.step} of {self.trained.folder}", "folder": str(self.folder)})
        return self.folder
