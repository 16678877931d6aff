"""Runs a rendered script by bash, with stand-ins for Slurm's commands that record their arguments."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

STAND_IN = """\
#!/bin/bash
printf '%s\\0' "$(($# + 1))" {name} "$@" >> "$NOTES/calls"
[ {name} = srun ] && env -0 > "$NOTES/environment"
case " $* " in *' framework.launch.preflight '*) exit "${{PREFLIGHT:-0}}" ;; esac
exit "${{CODE:-0}}"
"""


@dataclass(frozen=True)
class Ran:
    """What a script did: its exit code, what it called, the environment of the last step, what it printed."""

    code: int
    calls: list[list[str]]
    environment: dict[str, str]
    output: str

    def overrides(self) -> list[str]:
        """The arguments that the trainer was started with."""
        call = next(call for call in self.calls if "framework.launch.supervisor.main" in call)
        return call[call.index("--") + 1 :]


def run_script(script: str, folder: Path, **variables: str) -> Ran:
    """Run `script` in the empty `folder`, with `variables` in addition to those of a job."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for name in ("srun", "scontrol"):
        program = programs / name
        program.write_text(STAND_IN.format(name=name))
        program.chmod(0o755)
    job = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "4"}
    environment = {**job, **variables, "NOTES": str(folder)}
    done = subprocess.run(
        ["/bin/bash"], input=script.encode(), env=environment, cwd=folder, capture_output=True, timeout=60, check=False
    )
    recorded, calls = _recorded(folder / "calls"), []
    while recorded:
        length = int(recorded[0])
        calls.append(recorded[1 : 1 + length])
        recorded = recorded[1 + length :]
    step = dict(pair.split("=", 1) for pair in _recorded(folder / "environment"))
    return Ran(done.returncode, calls, step, (done.stdout + done.stderr).decode())


def _recorded(file: Path) -> list[str]:
    return file.read_bytes().decode().split("\0")[:-1] if file.exists() else []
