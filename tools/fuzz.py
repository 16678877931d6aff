"""Run the fuzzers of docs/attacks.md as a campaign: each in a process of its own, with many examples.

    python -m tools.fuzz [--examples 1000] [--only WORD]

Each fuzzer draws at least `--examples`, by the hypothesis profile that reaches them. tests/campaign.json keeps by test
the examples of its last campaign, its minutes, and the faults: `open` counts the distinct failures of the last
campaign, `mended` those of earlier ones that a later campaign no longer finds. `python -m tools.docs` puts them on the
page.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from framework.run.files import write_json
from tools.docs.attacks import Attack, attacks
from tools.docs.campaigns import RECORD, Campaign, read_campaigns

ROOT = Path(__file__).resolve().parents[1]
PROFILES = {"campaign": 20, "wide": 40, "large": 100}
"""Profiles of `tests/conftest.py`: {name: how many times the examples of a plain run}."""


def main(arguments: list[str] | None = None) -> int:
    """Run the fuzzers and record what they find. Returns 1 if any found a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1_000, help="examples that each fuzzer draws at least")
    parser.add_argument("--only", default="", help="run the fuzzers whose `file::test` holds this word")
    options = parser.parse_args(arguments)
    found = False
    for attack in attacks(ROOT):
        name = f"{attack.file}::{attack.test}"
        if attack.examples and options.only in name:
            known = read_campaigns(ROOT)
            ran, output = run(attack, options.examples, known.get(name))
            write_json(ROOT / RECORD, {each: asdict(of) for each, of in sorted((known | {name: ran}).items())})
            print(f"{name}: {ran.examples} examples, {ran.minutes} min, {ran.open} faults", flush=True)
            if ran.open:
                print(output, flush=True)
                found = True
    return int(found)


def run(attack: Attack, examples: int, before: Campaign | None) -> tuple[Campaign, str]:
    """Run one fuzzer with at least `examples`; the campaign, and what pytest printed.

    Raises `RuntimeError` where the test did not run.
    """
    profile = next((name for name, share in PROFILES.items() if share * attack.examples >= examples), "large")
    command = [sys.executable, "-m", "pytest", "-n", "0", "-m", "", "--timeout", "0", "--hypothesis-show-statistics"]
    start = time.monotonic()
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", f"{attack.file}::{attack.test}"],
        cwd=ROOT,
        env=os.environ | {"HYPOTHESIS_PROFILE": profile},
        capture_output=True,
        text=True,
        check=False,
    )
    minutes = round((time.monotonic() - start) / 60, 1)
    output = done.stdout + done.stderr
    drawn = sum(sum(map(int, each)) for each in re.findall(r"(\d+) passing, (\d+) failing, and (\d+) invalid", output))
    if done.returncode not in (0, 1) or not drawn:
        raise RuntimeError(f"{attack.file}::{attack.test} did not run:\n{output}")
    failures = max([done.returncode, *map(int, re.findall(r"found (\d+) distinct", output, re.IGNORECASE))])
    settled = before.mended + (before.open if before and not failures else 0) if before else 0
    return Campaign(drawn, minutes, failures, settled), output


if __name__ == "__main__":
    sys.exit(main())
