"""Links between nodes: who is slow is named, and nobody else."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from framework.parallel.links import disjoint_links, slow_nodes

RANKS = Path(__file__).with_name("link_ranks.py")


@pytest.mark.parametrize("nodes", [2, 3, 4, 5, 8])
def test_every_link_has_its_turn_and_no_node_two_at_once(nodes: int) -> None:
    assert sorted(link for links in disjoint_links(nodes) for link in links) == list(range(nodes))
    for links in disjoint_links(nodes):
        ends = [end for link in links for end in (link, (link + 1) % nodes)]
        assert len(ends) == len(set(ends))


@pytest.mark.parametrize(
    ("rates", "slow"),
    [
        ([10.0, 10.0, 10.0, 10.0], []),
        ([10.0, 2.0, 2.0, 10.0, 10.0], [2]),
        ([2.0, 10.0, 10.0, 10.0, 2.0], [0]),
        ([10.0, 2.0, 10.0, 10.0], []),  # one slow link is between two nodes: neither is named
        ([1.0, 10.0], []),
    ],
)
def test_a_node_is_slow_when_both_of_its_links_are(rates: list[float], slow: list[int]) -> None:
    assert slow_nodes(rates, slower=2.0) == slow


@pytest.mark.guarantee("A slow link between nodes is detected and named")
@pytest.mark.slow
def test_the_slow_one_of_five_nodes_stops_and_is_named(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "5", "SLOW": "3"}
    environment = {**os.environ, **meeting, "PYTHONPATH": str(RANKS.parents[2])}
    command = [sys.executable, str(RANKS), str(tmp_path / "out")]
    nodes = [subprocess.Popen(command, env={**environment, "RANK": str(rank)}) for rank in range(5)]
    assert [node.wait(timeout=300) for node in nodes] == [0] * 5
    for rank in range(5):
        said = json.loads((tmp_path / f"said-{rank}.json").read_text())
        assert said.startswith("slow links: node-3 reach") if rank == 3 else said == ""
