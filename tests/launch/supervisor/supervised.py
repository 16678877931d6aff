"""The supervisor of one node of toy workers.

python -m tests.launch.supervisor.supervised '{"folder": ..., "node": 0, "nodes": 2, "workers": 1, "steps": 30, ...}'
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from framework.launch.supervisor.attempt import Grace
from framework.launch.supervisor.main import Job, Supervisor
from framework.launch.supervisor.restart import RestartPolicy
from framework.launch.supervisor.watchdog import HangRules
from framework.launch.supervisor.workers import Place

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    job = json.loads(sys.argv[1])
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.launch.supervisor.toy_worker", sys.argv[1]]
    place = Place(job.get("node", 0), job.get("nodes", 1), job.get("workers", 2))
    supervisor = Supervisor(
        Job(
            folder,
            command,
            place,
            ("127.0.0.1", job.get("port", 0)),
            job.get("patience_s", 30.0),
            HangRules(floor_s=job.get("floor_s", 120.0)),
            RestartPolicy(max_attempts_without_progress=3, back_off_s=0.01),
            Grace(save_s=10.0, settle_s=0.3, stop_s=0.3),
        )
    )
    sys.exit(supervisor.run())
