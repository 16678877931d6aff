"""python -m tools.review --base main --head BRANCH: the review of a branch's recipes as a Markdown comment.

Prints which recipes change, each one's resolved differences with file and line, all problems that `check` finds, new
and changed component signatures, memory, tokens and device hours before and after, and the command to try. Of the head
only YAML is read, by the base's code; `--trust` runs the head's own code. Exit code 1 when the head brings
problems, 2 when nothing could be reviewed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.review.comment import comment, new_faults
from tools.review.signatures import changes, signatures, targets
from tools.review.trees import SOURCE, YAML, ReviewError, commit, files, fork_point, lay_base, lay_head

READ_S, PLAN_S = 600, 120
"""Seconds that reading one side may take, and planning one recipe of it."""


SAID = "review: "
"""What a line begins with that says what the review does, those of its processes included."""


def review(repository: Path, base: str, head: str, trust: bool, plan: bool) -> tuple[str, bool]:
    """The comment, and whether the head brings problems. Raises `ReviewError`."""
    after = commit(repository, head)
    before = fork_point(repository, commit(repository, base), after)
    with tempfile.TemporaryDirectory() as folder:
        old, new = Path(folder, "base"), Path(folder, "head")
        lay_base(repository, before, old)
        lay_head(repository, before, after, new, trust)
        code = new if trust else old
        _say(f"reading the recipes of {base}")
        was = _side(old, old)
        _say(f"reading the recipes of {head}")
        now = _side(code, new)
        changed = sorted(name for name in was.keys() | now.keys() if _values(was, name) != _values(now, name))
        added = [name for name in changed if name not in was and now[name]["valid"]]
        parents = _side(code, new, *added, look="differing") if added else {}
        plans: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        if plan:
            plans = (
                _plans(old, old, [name for name in changed if was.get(name, {}).get("valid")]),
                _plans(code, new, [name for name in changed if now.get(name, {}).get("valid")]),
            )
    named = targets(files(repository, before, YAML)) | targets(files(repository, after, YAML))
    sources = files(repository, before, SOURCE), files(repository, after, SOURCE)
    components = changes(signatures(sources[0]), signatures(sources[1]), named)
    unread = [] if trust else sorted(path for path, text in sources[1].items() if sources[0].get(path) != text)
    failed = bool(new_faults(was, now))
    return comment(base, head, trust, was, now, changed, parents, plans, components, unread), failed


def _values(side: dict[str, Any], name: str) -> Any:
    return {key: value for key, (value, _) in side[name]["values"].items()} if name in side else None


def _plans(code: Path, root: Path, recipes: Sequence[str]) -> dict[str, Any]:
    """The plans of `recipes`, or why there are none: a slow plan costs the review its figures, not its differences."""
    seconds = PLAN_S * len(recipes)
    try:
        return _side(code, root, *recipes, look="planned", seconds=seconds) if recipes else {}
    except subprocess.TimeoutExpired:
        return dict.fromkeys(recipes, f"planning took more than {seconds:.0f} s")


def _say(message: str) -> None:
    print(f"{SAID}{message}", file=sys.stderr, flush=True)


def _side(code: Path, root: Path, *recipes: str, look: str = "described", seconds: float = READ_S) -> dict[str, Any]:
    """What `tools.review.side` says of the recipes below `root`, all unless some are named, read by the code below
    `code`. Raises `TimeoutExpired` after `seconds`.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("RECORDINGS", "PYTHONPATH")}
    own = Path(__file__).with_name("side.py")
    words = [sys.executable, str(own), str(root), look, *recipes]
    environment |= {"PYTHONPATH": str(code), "PYTHONSAFEPATH": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(
            words, cwd=code, env=environment, stdout=output, stderr=subprocess.PIPE, text=True, errors="replace"
        ) as process,
    ):
        over = threading.Event()
        timer = threading.Timer(seconds, lambda: (over.set(), process.kill()))
        timer.start()
        last = "no output"
        for line in process.stderr or ():
            last = line.strip() or last
            if line.startswith(SAID):
                _say(line.removeprefix(SAID).strip())
        process.wait()
        timer.cancel()
        if over.is_set():
            raise subprocess.TimeoutExpired(words, seconds)
        if process.returncode != 0:
            raise ReviewError(f"the recipes below {root.name} cannot be read: {last}")
        output.seek(0)
        result: dict[str, Any] = json.loads(output.read().splitlines()[-1])
        return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comment."""
    parser = argparse.ArgumentParser(prog="python -m tools.review", description="Review a branch's recipes.")
    parser.add_argument("--base", default="main", help="the branch that the change is for")
    parser.add_argument("--head", required=True, help="the branch to review")
    parser.add_argument("--repository", type=Path, default=Path(), help="the checkout that has both")
    parser.add_argument("--trust", action="store_true", help="run the head's own code, not only read its YAML")
    parser.add_argument("--no-plan", dest="plan", action="store_false", help="leave memory, tokens and hours out")
    options = parser.parse_args(arguments)
    try:
        text, failed = review(options.repository, options.base, options.head, options.trust, options.plan)
    except subprocess.TimeoutExpired as error:
        print(f"review: reading the recipes took more than {error.timeout:.0f} s", file=sys.stderr)
        return 2
    except ReviewError as error:
        print(f"review: {error}", file=sys.stderr)
        return 2
    print(text)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
