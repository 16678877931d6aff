"""Step: whether the device computes what a CPU computes, in float32 and in bfloat16."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from framework.model.backbone import RandomBackbone
from framework.model.language_action import LanguageActionModel
from framework.objective.supervised import CrossEntropy
from framework.training.sft.prepare import prepare_step
from tools.bench.sft import Rows, architecture_of
from tools.gpu_trial.setting import Setting

Passes = tuple[float, dict[str, Tensor]]
"""The loss of a token, and the gradient of each parameter on the host in float32."""
ROWS, LENGTH = 4, 128


def parity(setting: Setting) -> dict[str, Any]:
    """Loss and gradients of rows of different lengths with images, against a CPU in float32 under `sdpa`: of the tiny
    model and, on a GPU, of two blocks of the 0.6 B model, whose heads are as wide as the large models'.

    A gap of gradients is the norm of the difference over that of the reference, of all parameters as one vector, and
    the largest of a single parameter.
    """
    sizes = ["tiny"] if setting.dry else ["tiny", "0.6b"]
    figures = {}
    for size in sizes:
        figures[size] = _of_size(setting, size)
        setting.keep(figures)
    return figures


def _of_size(setting: Setting, size: str) -> dict[str, Any]:
    architecture = architecture_of(size)
    if size != "tiny":
        architecture = architecture | {"text": architecture["text"] | {"num_hidden_layers": 2}}
    rows = Rows(LENGTH, 0.5, 1, 8, unequal=True)
    batch = rows.batch(architecture, ROWS, torch.Generator().manual_seed(0))
    reference = _passes("cpu", "float32", "sdpa", architecture, batch)
    figures = {}
    for device in dict.fromkeys(("cpu", setting.device)):
        for dtype in ("float32", "bfloat16"):
            for attention in ("auto", "sdpa"):
                found = _passes(device, dtype, attention, architecture, batch)  # type: ignore[arg-type]
                figures[f"{device} {dtype} {attention}"] = _gaps(found, reference)
    return figures


def _passes(
    device: str, dtype: Literal["float32", "bfloat16"], attention: str, architecture: dict[str, Any], batch: Any
) -> Passes:
    """Both passes of a model whose weights are drawn on the CPU, the same at every call."""
    torch.manual_seed(0)
    model = LanguageActionModel(RandomBackbone(architecture, attention=attention), {}).train().to(device)
    step = prepare_step(model, [batch], missing=0).to(torch.device(device))
    (micro,) = step.micro_batches
    with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
        loss = CrossEntropy()(model(micro.batch, micro.sources), model.head, micro.targets).total / step.counts[0]
    loss.backward()
    gradients = {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients


def _gaps(found: Passes, reference: Passes) -> dict[str, float]:
    ours, theirs = found[1], reference[1]
    norms = {name: float((ours[name] - theirs[name]).norm()) for name in theirs}
    whole = sum(float(each.square().sum()) for each in theirs.values()) ** 0.5
    single = max(
        norms[name] / float(theirs[name].norm()) for name in theirs if float(theirs[name].norm()) > 1e-6 * whole
    )
    return {
        "loss": found[0],
        "loss_gap": abs(found[0] - reference[0]) / reference[0],
        "gradient_gap": sum(norm**2 for norm in norms.values()) ** 0.5 / whole,
        "largest_gap_of_a_parameter": single,
    }
