"""What differs between the families of backbones, one entry each. The `model_type` of a configuration selects it.

A new family is an entry here, a tensor plan in `framework.model.tensor_plan` and a preset; see
`docs/howto/backbone.md`.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any

from framework.model.tensor_plan import QWEN3_5, QWEN3_5_MOE, QWEN3_VL, QWEN3_VL_MOE, Plan


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of backbones."""

    name: str
    """The name that messages use."""
    classes: str
    """Prefix of its classes: `<classes>Config` and `<classes>ForConditionalGeneration`."""
    module: str = "transformers"
    """The module that has them."""
    since: tuple[int, int]
    """The first release of `transformers` with which the family is computed as this package expects."""
    tensor_plan: Plan
    """How tensor parallelism cuts its layers."""
    experts: bool = False
    """Whether routers choose experts (`mlp.gate`, `mlp.experts`)."""
    recurrent: bool = False
    """Whether some layers carry a state along a row (`linear_attn`): attention masks and position ids do not end it at
    the end of a sample."""
    transposed: str | None = None
    """Names of weights, as a regular expression, whose two last dimensions released files hold in the other order."""
    unused: str | None = None
    """Names of weights, as a regular expression, that released files hold and the network does not have."""

    def config_class(self) -> Any:
        """The configuration's class. Raises `ValueError` when `transformers` is too old."""
        return self._class("Config")

    def network_class(self) -> Any:
        """The network's class; exports name it. Raises `ValueError` when `transformers` is too old."""
        return self._class("ForConditionalGeneration")

    def _class(self, suffix: str) -> Any:
        import transformers

        release = tuple(int(number) for number in transformers.__version__.split(".")[:2])
        if release < self.since:
            raise ValueError(
                f"model.backbone: {self.name} needs transformers {self.since[0]}.{self.since[1]} or newer, "
                f"{transformers.__version__} is installed: upgrade it, or choose a Qwen3-VL backbone"
            )
        return getattr(importlib.import_module(self.module), f"{self.classes}{suffix}")

    def is_transposed(self, name: str) -> bool:
        """Whether released files hold the weight `name` transposed."""
        return self.transposed is not None and re.search(self.transposed, name) is not None

    def is_unused(self, name: str) -> bool:
        """Whether the weight `name` of a released file is no part of the network."""
        return self.unused is not None and re.search(self.unused, name) is not None


FAMILIES: dict[str, Family] = {
    "qwen3_vl": Family(name="Qwen3-VL", classes="Qwen3VL", since=(4, 57), tensor_plan=QWEN3_VL),
    "qwen3_vl_moe": Family(
        name="Qwen3-VL-MoE",
        classes="Qwen3VLMoe",
        since=(5, 20),
        tensor_plan=QWEN3_VL_MOE,
        experts=True,
        transposed=r"\.experts\.(gate_up|down)_proj$",
    ),
    "qwen3_5": Family(
        name="Qwen3.5", classes="Qwen3_5", since=(5, 20), tensor_plan=QWEN3_5, recurrent=True, unused=r"^mtp\."
    ),
    "qwen3_5_moe": Family(
        name="Qwen3.5-MoE",
        classes="Qwen3_5Moe",
        since=(5, 20),
        tensor_plan=QWEN3_5_MOE,
        experts=True,
        recurrent=True,
        unused=r"^mtp\.",
    ),
}
"""The families by `model_type`; a plugin adds its own."""


def family_of(model_type: str) -> Family:
    """The family of a configuration's `model_type`. Raises `ValueError` that lists those that there are."""
    if model_type not in FAMILIES:
        raise ValueError(
            f"model.backbone: no family of the model_type {model_type}; there are {', '.join(FAMILIES)}. "
            "docs/howto/backbone.md tells how to add one"
        )
    return FAMILIES[model_type]
