"""Transfers weights to a vLLM server: the protocol, the files that every transfer falls back on, and the transfer by
disk.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from framework.generation.engine import EngineError
from framework.generation.vllm_client import VLLMClient
from framework.model.hf_classes import LanguageActionForConditionalGeneration
from framework.model.hf_export import write_code
from framework.model.language_action import LanguageActionModel
from framework.recipe.component import component

FILE_BYTES = 2 << 30
"""Most bytes of a weight file."""
ARCHITECTURE = "Qwen3VLForConditionalGeneration"
"""The architecture in the configuration; without it the server would serve an encoder."""
SENSOR_ARCHITECTURE = LanguageActionForConditionalGeneration.__name__
"""The architecture of a model with encoders, which the plug-in in `plugins/vllm_plugin` makes known to the server."""
ENCODERS = "encoders."
"""What the names of the encoders' weights begin with, next to those of the backbone."""


class WeightFiles:
    """The last two versions of the weights, each a folder of safetensors.

    The folder that holds them is itself a model that a server can start from: configuration, processor, and links to
    the newest version. `digests` holds the SHA-256 of each tensor of the newest version by Hugging Face name, on the
    rank that wrote them.

    Args:
        folder: Holds the versions.
        dtype: The server's dtype.
    """

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.folder, self.dtype = folder, dtype
        self.digests: dict[str, str] = {}

    def to_host(self, name: str, tensor: Tensor) -> Tensor:
        """Returns a copy of a weight on the host, in `dtype`, and records its digest."""
        copy = tensor.detach().to("cpu", self.dtype, copy=True).contiguous()
        self.digests[name] = digest(copy)
        return copy

    def make_folder(self) -> None:
        """Creates the folder for its owner alone. Raises `EngineError` where others could replace the weights."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (mode := self.folder.stat().st_mode) & 0o022:
            raise EngineError(
                f"sampler.folder: {self.folder} has mode {mode & 0o777:04o}, and so others could replace the weights "
                "that the server loads; take write permission from them (chmod go-w)"
            )

    def write_config(self, model: LanguageActionModel) -> None:
        """Writes the configuration and the processor, and of a model with encoders their code.

        The head is untied: vLLM 0.32 copies a tied head on a CPU, and loading weights does not update the copy.
        """
        self.make_folder()
        config = copy.deepcopy(model.backbone.config)
        if model.encoders:
            config.sensors = write_code(model, self.folder)
        config.save_pretrained(self.folder)
        model.processor.save_pretrained(self.folder)
        untie(self.folder / "config.json", SENSOR_ARCHITECTURE if model.encoders else ARCHITECTURE)

    def path(self, version: int) -> Path:
        """Returns the folder of a version, whether it exists or not."""
        return self.folder / f"version-{version}"

    def write(self, version: int, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Writes a version, of tensors that `to_host` returned, and removes all but the last two."""
        self.make_folder()
        partial = self.path(version).with_suffix(".part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        batch, size, count = dict[str, Tensor](), 0, 0
        for name, tensor in weights:
            batch[name] = tensor
            size += tensor.nbytes
            if size >= FILE_BYTES:
                save_file(batch, partial / f"model-{count:05}.safetensors", metadata={"format": "pt"})
                batch, size, count = {}, 0, count + 1
        save_file(batch, partial / f"model-{count:05}.safetensors", metadata={"format": "pt"})
        shutil.rmtree(self.path(version), ignore_errors=True)
        partial.rename(self.path(version))
        for file in self.path(version).iterdir():
            # Another rank's server may start at any moment: a link must never be missing.
            link = self.folder / f"{file.name}.part"
            link.unlink(missing_ok=True)
            link.symlink_to(file)
            link.rename(self.folder / file.name)
        for old in self.folder.glob("version-*"):
            if old.name not in (f"version-{version}", f"version-{version - 1}"):
                shutil.rmtree(old)

    def wait_for(self, version: int, patience_s: float) -> Path:
        """Returns the folder of a version, once rank 0 has written it. Raises `EngineError` after `patience_s`."""
        deadline = time.monotonic() + patience_s
        while not self.path(version).exists():
            if time.monotonic() > deadline:
                raise EngineError(
                    f"sampler.folder: {self.path(version)} does not exist after {patience_s:g} s, for a server that "
                    "lost its weights; do all ranks share this folder?"
                )
            time.sleep(0.1)
        return self.path(version)


class Transfer(Protocol):
    """Brings weights from the trainer's rank 0 to the server."""

    def send(
        self, weights: Iterable[tuple[str, Tensor]], version: int, client: VLLMClient, files: WeightFiles, asleep: bool
    ) -> bool:
        """Consumes all `weights` (gathering them is collective), and has `files` hold them sooner or later. Returns
        whether the server, which may be `asleep`, holds them already.
        """
        ...


@component
class Disk:
    """Writes files, which the server loads next, or when it starts."""

    def send(
        self, weights: Iterable[tuple[str, Tensor]], version: int, client: VLLMClient, files: WeightFiles, asleep: bool
    ) -> bool:
        """See `Transfer`."""
        files.write(version, ((name, files.to_host(name, tensor)) for name, tensor in weights))
        return False


def untie(config: Path, architecture: str) -> None:
    """Edits a configuration: names the `architecture`, and gives the head weights of its own."""
    read: dict[str, Any] = json.loads(config.read_text())
    read["architectures"] = [architecture]
    read["tie_word_embeddings"] = read["text_config"]["tie_word_embeddings"] = False
    config.write_text(json.dumps(read, indent=1))


def served_name(name: str) -> str:
    """Returns the name that vLLM gives to a weight, where it keeps the weight unfused."""
    if name.startswith(ENCODERS):
        return name
    if name.startswith("model.language_model."):
        return name.replace("model.language_model.", "language_model.model.", 1)
    return name.removeprefix("model.") if name.startswith("model.") else f"language_model.{name}"


def digest(tensor: Tensor) -> str:
    """Returns the SHA-256 of a tensor's bytes, as vLLM computes it."""
    return hashlib.sha256(tensor.view(-1).view(torch.uint8).numpy().data).hexdigest()
