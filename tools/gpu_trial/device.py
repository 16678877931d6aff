"""Steps: what the device is, and whether its collectives work."""

from __future__ import annotations

import platform
import socket
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from framework.parallel.precision import Precision
from framework.parallel.sharding import shard
from tools.gpu_trial.setting import Setting

PACKAGES = ("torch", "transformers", "lightning", "accelerate", "triton", "liger-kernel", "torchao", "flash-attn",
            "vllm", "trl")  # fmt: skip


def device_facts(setting: Setting) -> dict[str, Any]:
    """Names and versions, and what the device reaches: a matrix product's FLOP/s and a copy's bytes/s."""
    figures: dict[str, Any] = {
        "python": platform.python_version(),
        "packages": {each: _installed(each) for each in PACKAGES},
    }
    size = 256 if setting.dry else 8192
    if setting.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        free, total = torch.cuda.mem_get_info()
        figures |= {
            "name": properties.name,
            "capability": list(torch.cuda.get_device_capability()),
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": total / 2**30,
            "context_gib": (total - free) / 2**30,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    a, b = torch.randn(2, size, size, device=setting.device, dtype=torch.bfloat16)
    figures["bf16_flops"] = 2 * size**3 / seconds_of(lambda: a @ b, setting)
    figures["copy_bytes_per_s"] = 2 * a.nbytes / seconds_of(lambda: a.clone(), setting)
    return figures


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def seconds_of(call: Any, setting: Setting, repeats: int = 10) -> float:
    """Seconds of a call, the mean of `repeats` after three that do not count."""
    repeats = 1 if setting.dry else repeats
    for _ in range(1 if setting.dry else 3):
        call()
    setting.synchronise()
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    setting.synchronise()
    return (time.perf_counter() - begin) / repeats


def collectives(setting: Setting) -> dict[str, Any]:
    """NCCL among one: a sum over ranks, and FSDP2 with float32 weights and bfloat16 arithmetic over a mesh of one."""
    backend = "nccl" if setting.device == "cuda" else "gloo"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    numbers = torch.ones(1 << (10 if setting.dry else 26), device=setting.device)
    seconds = seconds_of(lambda: dist.all_reduce(numbers), setting)
    torch.manual_seed(0)
    width = 64 if setting.dry else 4096
    with torch.device(setting.device):
        plain = nn.Sequential(*(nn.Linear(width, width) for _ in range(4)))
        inputs = torch.randn(width, width)
    gradients = []
    for sharded in (False, True):
        if sharded:
            mesh = init_device_mesh(setting.device, (1, 1), mesh_dim_names=("replicate", "shard"))
            shard(plain, list(plain), mesh, Precision("float32", "float32").on_mesh())
        plain.zero_grad()
        plain(inputs).square().mean().backward()
        gradients.append([_whole(parameter.grad) for parameter in plain.parameters()])
    dist.destroy_process_group()
    gaps = [float((ours - theirs).norm() / theirs.norm()) for theirs, ours in zip(*gradients, strict=True)]
    return {
        "backend": backend,
        "all_reduce_bytes": numbers.nbytes,
        "all_reduce_s": seconds,
        "fsdp_gradient_gap": max(gaps),
    }


def _whole(gradient: Any) -> torch.Tensor:
    tensor: torch.Tensor = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    return tensor.clone()
