"""Words that the redesign retired do not come back."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.processes import REPOSITORY

RETIRED = (
    r"council|scribe|fruitless|begun|anew|to be borne|in vain|imagined|besides?|share_prompts|every_part"
    r"|sampled_at_once|scorable|examin(?:ation|ations|es|ed|ing)|untrained: true|mean_centred|rehears\w*"
    r"|start_from|sizes\.examined_\w+"
    r"|EvaluateCheckpoint|MeanCentred|StageRun|job_words|closed_loop_metrics|sampling_metrics|saved_prompts"
    r"|recording_shards|waypoint_codec|shard_index|convert_(?:argoverse|forecasting|kitti|nuscenes)"
    r"|policy_module|policy_stage|stage_data|scenario_sampling|starvation|exams?"
)
"""Names of the tree before the redesign, and words that read as translated."""
ALLOWED = (
    "framework/recipe/renames.yaml",  # the old names are its subject
    "tests/fixtures/",
    "tests/recipe/test_renames.py",
    "tests/test_words.py",
    "tools/bench/results/",  # measured before
    "framework/model/tiny/",
    "tools/tiny_tokenizer.py",  # a vocabulary
    "LICENSE",
)


def test_retired_words_are_gone() -> None:
    listed = subprocess.run(
        ["git", "-C", str(REPOSITORY), "ls-files", "-z"], capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    pattern = re.compile(rf"(?<![A-Za-z])(?:{RETIRED})(?![A-Za-z])", re.IGNORECASE)
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        if name.startswith(ALLOWED) or not (REPOSITORY / name).is_file():
            continue
        try:
            text = (REPOSITORY / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            found += [f"{name}:{number}: {match[0]}" for match in pattern.finditer(line)]
    assert not found, "\n".join(found[:50])
