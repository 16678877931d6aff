"""How weights get to a vLLM server: one protocol, the files that every way falls back on, and the way by the disk."""

from __future__ import annotations

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
from framework.model.language_action import LanguageActionModel

FILE_BYTES = 2 << 30
"""The most that a file of weights holds."""
ARCHITECTURE = "Qwen3VLForConditionalGeneration"
"""What the server must take the model for: without it, it would serve an encoder."""


class WeightFiles:
    """The last two versions of the weights in `folder`, in `dtype`, each a folder of safetensors.

    `folder` itself is a model that a server can begin with: configuration, processor, and links to the newest version.
    `digests` are the SHA-256 of the tensors of the newest version, by Hugging Face name, where this rank has seen them.
    """

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.folder, self.dtype = folder, dtype
        self.digests: dict[str, str] = {}

    def keep(self, name: str, tensor: Tensor) -> Tensor:
        """A copy of a weight on the host, in `dtype`; its digest is noted."""
        held = tensor.detach().to("cpu", self.dtype, copy=True).contiguous()
        self.digests[name] = digest(held)
        return held

    def describe(self, model: LanguageActionModel) -> None:
        """Write what a server wants to know of the model beside its weights.

        Its head is untied: vLLM 0.32 keeps a copy of a tied head on a CPU, which loading does not renew.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        model.backbone.config.save_pretrained(self.folder)
        model.processor.save_pretrained(self.folder)
        untie(self.folder / "config.json")

    def path(self, version: int) -> Path:
        """Where a version is, or will be."""
        return self.folder / f"version-{version}"

    def write(self, version: int, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Write what `keep` gave; the version before the last is removed."""
        begun = self.path(version).with_suffix(".part")
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir(parents=True)
        held, size, count = dict[str, Tensor](), 0, 0
        for name, tensor in weights:
            held[name] = tensor
            size += tensor.nbytes
            if size >= FILE_BYTES:
                save_file(held, begun / f"model-{count:05}.safetensors", metadata={"format": "pt"})
                held, size, count = {}, 0, count + 1
        save_file(held, begun / f"model-{count:05}.safetensors", metadata={"format": "pt"})
        shutil.rmtree(self.path(version), ignore_errors=True)
        begun.rename(self.path(version))
        for file in self.path(version).iterdir():
            # Another rank's server may begin at any moment: a link is never missing.
            link = self.folder / f"{file.name}.part"
            link.unlink(missing_ok=True)
            link.symlink_to(file)
            link.rename(self.folder / file.name)
        for old in self.folder.glob("version-*"):
            if old.name not in (f"version-{version}", f"version-{version - 1}"):
                shutil.rmtree(old)

    def awaited(self, version: int, patience_s: float) -> Path:
        """The folder of a version that rank 0 may still be writing. Raises `EngineError` when it is not in time."""
        late = time.monotonic() + patience_s
        while not self.path(version).exists():
            if time.monotonic() > late:
                raise EngineError(
                    f"engine.folder: {self.path(version)} is not there after {patience_s:g} s, for a server that lost "
                    "its weights; do all ranks see this folder?"
                )
            time.sleep(0.1)
        return self.path(version)


class Transfer(Protocol):
    """A way of the weights from the trainer's rank 0 to the server."""

    def send(
        self, weights: Iterable[tuple[str, Tensor]], version: int, client: VLLMClient, files: WeightFiles, asleep: bool
    ) -> bool:
        """Take all `weights` (gathering them is collective), see that `files` come to hold them, and say whether the
        server, which may be `asleep`, holds them already.
        """
        ...


class Disk:
    """By the disk: the server is not there yet, or loads the files next."""

    def send(
        self, weights: Iterable[tuple[str, Tensor]], version: int, client: VLLMClient, files: WeightFiles, asleep: bool
    ) -> bool:
        """See `Transfer`."""
        files.write(version, ((name, files.keep(name, tensor)) for name, tensor in weights))
        return False


def untie(config: Path) -> None:
    """Have a configuration say that its head has weights of its own, and what it is the configuration of."""
    read: dict[str, Any] = json.loads(config.read_text())
    read["architectures"] = [ARCHITECTURE]
    read["tie_word_embeddings"] = read["text_config"]["tie_word_embeddings"] = False
    config.write_text(json.dumps(read, indent=1))


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes, as vLLM computes it."""
    return hashlib.sha256(tensor.view(-1).view(torch.uint8).numpy().data).hexdigest()
