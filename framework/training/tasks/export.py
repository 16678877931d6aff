"""The task that writes a trained model as a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import seed_everything

from framework.data.pipeline import DataPipeline
from framework.model.hf_export import export
from framework.model.language_action import LanguageActionModel
from framework.run.folder import RunFolder
from framework.training.tasks.train import load_newest


@dataclass(frozen=True)
class Export:
    """Exports the newest checkpoint of the run in folder `checkpoint_of` to `folder`, sensor pieces beside the
    backbone.
    """

    model: Callable[..., LanguageActionModel]
    data: DataPipeline
    checkpoint_of: str
    folder: str

    def run(self, run: RunFolder) -> Path:
        """The folder written."""
        seed_everything(run.seed, verbose=False)
        model = self.model(special_tokens=self.data.special_tokens, initialize=False)
        model.materialize(torch.device("cpu"))
        checkpoint = load_newest(Path(self.checkpoint_of), model)
        folder = Path(self.folder)
        export(model, folder)
        print(f"exported step {checkpoint.step} of {self.checkpoint_of} to {folder}")
        return folder
