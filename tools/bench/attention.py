"""Attention over packed rows: by the lengths of samples against a dense mask, both passes, on a CPU.

    OMP_NUM_THREADS=1 python -m tools.bench.attention [--rows 1024 4096 16384 --repeats 5 --out ...]

A row holds samples of 32 to 512 tokens, drawn once. The sides take turns in one process, on the same queries, keys and
values of the tiny backbone's heads. The dense side builds its mask as `sdpa` in transformers does, once a call. Seconds
are those of the process, since other processes share the machine's cores; memory is the most that operators' results
held at once on top of the inputs, without what an operator holds inside.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from framework.model.segment_operator import attention_by_segment
from framework.training.planner.trace import Allocations
from tools.bench.machine import write_result

HEADS, KEY_HEADS, WIDTH = 4, 2, 32
"""Those of the tiny backbone."""
SHORTEST, LONGEST = 32, 512
"""Tokens of a sample."""
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def mixed_lengths(total: int) -> list[int]:
    """Lengths of samples that fill a row of `total` tokens."""
    generator, lengths = torch.Generator().manual_seed(total), list[int]()
    while sum(lengths) < total:
        drawn = int(torch.randint(SHORTEST, LONGEST + 1, (), generator=generator))
        lengths.append(min(drawn, total - sum(lengths)))
    return lengths


def inputs_of(lengths: Sequence[int]) -> Inputs:
    """Queries, keys and values of a row, and the bounds of its samples."""
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, heads, sum(lengths), WIDTH, generator=generator, requires_grad=True)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    ]
    bounds = F.pad(torch.tensor(lengths).cumsum(0, dtype=torch.int32), (1, 0))
    return tensors[0], tensors[1], tensors[2], bounds


def by_lengths(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor) -> Tensor:
    """Attention by the bounds of samples, `(1, t, heads, width)`."""
    return attention_by_segment(query, key, value, bounds, bounds, True, None)[0]


def under_mask(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor) -> Tensor:
    """The same under a mask `(t, t)`."""
    samples = torch.arange(len(bounds) - 1).repeat_interleave(bounds.diff())
    mask = (samples[:, None] == samples).tril()
    key, value = (each.repeat_interleave(HEADS // KEY_HEADS, dim=1) for each in (key, value))
    return F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2)


SIDES: dict[str, Callable[..., Tensor]] = {"lengths": by_lengths, "mask": under_mask}


def both_passes(side: Callable[..., Tensor], inputs: Inputs) -> tuple[Tensor, ...]:
    """Outputs and gradients."""
    outputs = side(*inputs)
    return (outputs.detach(), *torch.autograd.grad(outputs.square().sum(), inputs[:3]))


def measure(total: int, repeats: int) -> dict[str, Any]:
    """Seconds and bytes of either side at rows of `total` tokens, and how much they differ."""
    lengths = mixed_lengths(total)
    inputs = inputs_of(lengths)
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    memory, results = {}, {}
    for name, side in SIDES.items():
        with Allocations(inputs) as held:
            results[name] = both_passes(side, inputs)
        memory[name] = held.peak / 2**20
    for repeat in range(repeats):
        for name in sorted(SIDES, reverse=repeat % 2 == 1):
            start = time.process_time()
            both_passes(SIDES[name], inputs)
            seconds[name].append(time.process_time() - start)
    ratios = [mask / ours for ours, mask in zip(seconds["lengths"], seconds["mask"], strict=True)]
    gaps = [float((a - b).norm() / b.norm()) for a, b in zip(results["lengths"], results["mask"], strict=True)]
    return {
        "samples": len(lengths),
        "seconds": {name: statistics.median(each) for name, each in seconds.items()},
        "times_as_fast": statistics.median(ratios),
        "times_as_fast_of_each_repeat": ratios,
        "peak_mib": memory,
        "largest_relative_difference": max(gaps),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 4096, 16384], help="tokens of a row")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("tools/bench/results/attention_cpu.json"))
    options = parser.parse_args(arguments)
    figures = {str(total): measure(total, options.repeats) for total in options.rows}
    write_result(options.out, "attention", vars(options), figures)


if __name__ == "__main__":
    main()
