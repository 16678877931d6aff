"""The task that writes a trained model as a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from lightning.pytorch import seed_everything

from framework.model.edge_commands import Precision, write_commands
from framework.model.hf_export import export
from framework.model.language_action import LanguageActionModel
from framework.recipe.component import component
from framework.run.console import show_rows
from framework.run.files import write_text
from framework.run.folder import RunFolder
from framework.training.tasks.exported import write_recipe
from framework.training.tasks.model_card import Terms, model_card
from framework.training.tasks.train import Train
from framework.training.tasks.trained_run import TrainedRun

if TYPE_CHECKING:
    from framework.model.encoders.base import Encoder

CARD = "README.md"
"""The model card, where the hub looks for it."""
RESEARCH = (
    "Research on driving in simulation and on recordings. The model is no part of a safety case: it has not been "
    "validated to control a vehicle on a road."
)
"""The intended use unless somebody decides otherwise."""


@component
class Export:
    """Exports a checkpoint of a run as a folder of its own: transformers loads the whole model from it, adapters merged
    and all sensors included, or without the folder's code the backbone alone (see `framework.model.hf_export`).

    The model is the one of the run's own recipe, which the folder holds as well: `serve` and `drive` take the folder as
    they take the run. The folder's README.md is the model card, written from the run.

    Args:
        folder: Where to write.
        run: The folder of the run to export. Its newest checkpoint that verifies is used.
        checkpoint: The checkpoint's folder, RUN/checkpoints/step-N.attempt-A, instead of `run`.
        licence: Licence of the weights, by its SPDX name.
        intended_use: What the model is for, and what not.
        onnx: Whether to write each sensor encoder as ONNX too, to onnx/NAME.onnx; needs the extra `edge`.
        engine: Format of the weights on a vehicle, for which the commands that build the engines are written as a
            script (see `framework.model.edge_commands`). None writes no script.

    Raises `ValueError` for an engine without ONNX of the encoders.
    """

    def __init__(
        self,
        folder: str,
        run: str | None = None,
        checkpoint: str | None = None,
        licence: str = "other",
        intended_use: str = RESEARCH,
        onnx: bool = False,
        engine: Precision | None = None,
    ) -> None:
        if engine is not None and not onnx:
            raise ValueError(f"task.engine: {engine} needs the encoders' ONNX; set task.onnx=true")
        self.folder = Path(folder)
        self.terms = Terms(licence, intended_use)
        self.onnx, self.engine = onnx, engine
        self.trained = TrainedRun(run, checkpoint)

    def run(self, run: RunFolder) -> Path:
        """Export; returns the folder."""
        seed_everything(run.seed, verbose=False)
        name, train = self.trained.recipe(inputs=False)  # a machine that exports has the run's folder, not its data
        model = train.model(special_tokens=train.data.special_tokens, initialize=False)
        model.materialize(torch.device("cpu"))
        checkpoint = self.trained.checkpoint()
        self.trained.load_weights(checkpoint, model)
        export(model, self.folder, train.data.image_width, train.data.video_frames)
        if self.onnx:
            from framework.model.onnx_export import export_encoders  # its packages are an extra

            export_encoders(model, self.folder / "onnx")
        if self.engine is not None:
            self._write_commands(model, train, self.engine)
        write_recipe(self.trained, name, checkpoint, self.folder)
        write_text(self.folder / CARD, model_card(self.trained, name, train, checkpoint, self.terms))
        show_rows({"exported": f"step {checkpoint.step} of {self.trained.folder}", "folder": str(self.folder)})
        return self.folder

    def _write_commands(self, model: LanguageActionModel, train: Train, engine: Precision) -> None:
        images, vision = model.processor.image_processor, model.backbone.config.vision_config
        size = images.size
        pixels = int(size["longest_edge"] if isinstance(size, dict) else size.longest_edge)
        image_tokens = pixels // (vision.patch_size * vision.spatial_merge_size) ** 2
        encoders = cast("Iterable[tuple[str, Encoder]]", model.encoders.items())
        channels = {name: encoder.channels for name, encoder in encoders}
        write_commands(self.folder, engine, train.data.max_length, image_tokens, channels)
