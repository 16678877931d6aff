"""A run that has trained, read back from its folder: its own recipe and one of its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from framework.checkpoint.history import Checkpoint
from framework.checkpoint.store import CheckpointStore
from framework.recipe.instantiate import instantiate
from framework.recipe.stored import stored
from framework.run.layout import CHECKPOINTS, parse_checkpoint
from framework.training.tasks.newest_weights import newest_checkpoint
from framework.training.tasks.train import Train


class TrainedRun:
    """The run and the checkpoint that a task works on.

    Raises `ValueError` unless exactly one of `run` and `checkpoint` is given, and for a folder that is no checkpoint's.

    Args:
        run: A run's folder. Its newest checkpoint that verifies is used.
        checkpoint: A checkpoint's folder, RUN/checkpoints/step-N.attempt-A.
    """

    def __init__(self, run: str | None, checkpoint: str | None) -> None:
        if (run is None) == (checkpoint is None):
            raise ValueError(
                "task: give either run, a run's folder, or checkpoint, RUN/checkpoints/step-N.attempt-A, "
                f"{'not both' if run is not None else 'to say which model'}"
            )
        self._given = None if checkpoint is None else _parsed(Path(checkpoint))
        self.folder = self._given.folder.parents[1] if self._given is not None else Path(str(run))

    def recipe(self, inputs: bool = True) -> tuple[str, Train]:
        """The run's name and its task, as the recipe in its folder describes it. `inputs` says whether the data that
        it was trained on must exist here.

        Raises `RecipeError` if there is no recipe or today's code refuses it, `ValueError` if the run does not train.
        """
        composition = stored(self.folder)
        task = instantiate(composition, inputs=inputs)
        if not isinstance(task, Train):
            raise ValueError(f"{self.folder}: a run of {type(task).__name__}, which trains no model; give another run")
        return str(composition.config.run.name), task

    def stored_recipe(self) -> Mapping[str, Any]:
        """The resolved recipe in the run's folder, under today's names."""
        tree: Mapping[str, Any] = stored(self.folder).tree
        return tree

    def checkpoint(self) -> Checkpoint:
        """The checkpoint (collective). A given one is verified only when it is loaded."""
        return self._given or newest_checkpoint(self.folder)

    def load_weights(self, checkpoint: Checkpoint, model: nn.Module) -> None:
        """Load the weights of `checkpoint` into `model` (collective). Raises `CheckpointError` if a given checkpoint
        does not verify, or does not fit the model.
        """
        store = CheckpointStore(self.folder / CHECKPOINTS)
        store.load_weights(store.verified(checkpoint.folder) if self._given else checkpoint, model)


def _parsed(folder: Path) -> Checkpoint:
    saved = parse_checkpoint(folder)
    if saved is None or folder.parent.name != CHECKPOINTS:
        raise ValueError(f"task.checkpoint: {folder} is no checkpoint; give RUN/checkpoints/step-N.attempt-A")
    return Checkpoint(saved.step, saved.attempt, folder)
