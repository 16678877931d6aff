"""The supervisor of one node of toy workers, with the settings of the run's `job.json`.

python -m tests.launch.supervisor.supervised '{"folder": ..., "node": 0, "port": 29400, "steps": 30, "faults": [...]}'
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from framework.launch.spec import load
from framework.launch.supervisor.attempt import GracePeriods
from framework.launch.supervisor.main import Supervisor

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    toy = json.loads(sys.argv[1])
    command = [sys.executable, "-m", "tests.launch.supervisor.toy_worker", sys.argv[1]]
    address, grace = ("127.0.0.1", toy.get("port", 0)), GracePeriods(save_s=10.0, settle_s=0.3, stop_s=0.3)
    sys.exit(Supervisor(load(Path(toy["folder"])), toy.get("node", 0), address, command, grace).run())
