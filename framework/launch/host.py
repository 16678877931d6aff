"""What this machine offers: its devices, as the kernel lists them, and free ports."""

from __future__ import annotations

import socket
from pathlib import Path

GPUS = Path("/proc/driver/nvidia/gpus")
"""Has an entry for each GPU."""
EFA = Path("/sys/class/infiniband")
"""Has an entry for each EFA device."""


def count_entries(folder: Path) -> int:
    """Returns how many entries a folder has; 0 where there is none."""
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0


def free_port() -> int:
    """Returns a TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
