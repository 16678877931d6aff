"""One node of the links' test: measures, and writes the rates down. `SLOW` waits before all that it sends or receives.

RANK=0 WORLD_SIZE=5 ... python tests/parallel/link_ranks.py out.json
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from framework.parallel import links


def late(call: Any) -> Any:
    def waits(*arguments: Any) -> Any:
        time.sleep(0.2)
        return call(*arguments)

    return waits


if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank, out = dist.get_rank(), Path(sys.argv[1])
    os.environ["SLURMD_NODENAME"] = f"node-{rank}"
    if rank == int(os.environ["SLOW"]):
        dist.send, dist.recv = late(dist.send), late(dist.recv)
    said = ""
    try:
        links.LinkCheck(megabytes=1, rounds=3, stop=True).check(torch.device("cpu"), nodes=dist.get_world_size())
    except links.SlowNodeError as error:
        said = str(error)
    out.with_name(f"said-{rank}.json").write_text(json.dumps(said))
    dist.destroy_process_group()
