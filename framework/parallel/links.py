"""Measures the links between nodes before a run starts: one slow node holds up all others."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Annotated

import torch
import torch.distributed as dist
from annotated_types import Interval

from framework.parallel.collectives import all_gather_objects
from framework.recipe.component import component
from framework.recipe.ranges import PositiveCount

log = logging.getLogger(__name__)


class SlowNodeError(RuntimeError):
    """A node's links are slower than those of the other nodes."""


@component
@dataclass(frozen=True)
class LinkCheck:
    """Measures the rate of each node's links, and names slow nodes.

    Each rank sends to the rank of the same local number on the next node, around the ring of nodes, and no two links of
    a node are measured at once. A node is slow when both of its links are.
    """

    megabytes: Annotated[int, Interval(ge=1, le=65_536)] = 64
    """Size of a message (MiB)."""
    rounds: PositiveCount = 4
    """Messages per link."""
    slower: Annotated[float, Interval(ge=1, le=1000)] = 2.0
    """A link is slow below the median rate over this factor."""
    stop: bool = False
    """Whether the ranks of a slow node, and no others, raise `SlowNodeError`; otherwise a warning names the node."""

    def check(self, device: torch.device, nodes: int) -> list[float]:
        """The rates (GB/s) of the links from each of the `nodes` to the next (collective)."""
        rates = self._measured(device, nodes)
        name = os.environ.get("SLURMD_NODENAME") or platform.node()
        names = all_gather_objects(name, dist.group.WORLD)[:: dist.get_world_size() // nodes]
        if dist.get_rank() == 0:
            text = ", ".join(f"{name} {rate:.3g}" for name, rate in zip(names, rates, strict=True))
            log.info("links to the next node (GB/s): %s", text)
        if slow := slow_nodes(rates, self.slower):
            message = (
                f"slow links: {', '.join(names[node] for node in slow)} reach less than 1/{self.slower:g} of the "
                f"median {median(rates):.3g} GB/s on either side; take them out of service (`scontrol update "
                "nodename=NODE state=drain reason=Action:Replace`) or look at their EFA devices"
            )
            if dist.get_rank() == 0:
                log.warning(message)
            if self.stop and dist.get_rank() * nodes // dist.get_world_size() in slow:
                raise SlowNodeError(message)
        return rates

    def _measured(self, device: torch.device, nodes: int) -> list[float]:
        """Rates (GB/s) of all links. A node's link is as fast as that of its slowest rank."""
        world, rank = dist.get_world_size(), dist.get_rank()
        step = world // nodes
        node = rank // step
        sent = torch.ones(self.megabytes << 20, dtype=torch.uint8, device=device)
        seconds = float("nan")
        for links in disjoint_links(nodes):
            dist.barrier()
            for number in range(self.rounds + 1):  # the first round connects
                if number == 1:
                    start = time.perf_counter()
                if node in links:
                    dist.send(sent, (rank + step) % world)
                elif (node - 1) % nodes in links:
                    dist.recv(sent, (rank - step) % world)
            if (node - 1) % nodes in links:
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds = time.perf_counter() - start
        received = [self.rounds * sent.nbytes / 1e9 / each for each in all_gather_objects(seconds, dist.group.WORLD)]
        slowest = [min(received[first : first + step]) for first in range(0, world, step)]
        return slowest[1:] + slowest[:1]  # a node receives over the link of the node before it


def disjoint_links(nodes: int) -> list[set[int]]:
    """The links of a ring, each named by the node it leaves, in sets of links that share no node."""
    last = {nodes - 1} if nodes % 2 else set()
    sets = [set(range(0, nodes, 2)) - last, set(range(1, nodes, 2)), last]
    return [links for links in sets if links]


def slow_nodes(rates: Sequence[float], slower: float) -> list[int]:
    """Nodes both of whose links have less than the median rate over `slower`.

    `rates` are those of the links to the next node. Empty for two nodes, which share their links.
    """
    if len(rates) < 3:
        return []
    least = median(rates) / slower
    return [node for node in range(len(rates)) if max(rates[node - 1], rates[node]) < least]
