"""The attempts of a run, by what its folder tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from framework.run.folder import newest_attempt
from framework.run.layout import ATTEMPTS_FILE


@pytest.mark.fault("files whose last line is cut")
@pytest.mark.parametrize("odd", ["three", None, True, [4], {"of": 5}, float("inf"), 6.5, -7, ...])
def test_a_line_without_an_attempt_s_number_is_none(tmp_path: Path, odd: object) -> None:
    assert newest_attempt(tmp_path) == 0
    line = {"event": "start"} if odd is ... else {"event": "start", "attempt": odd}
    (tmp_path / ATTEMPTS_FILE).write_text(f'{{"event": "start", "attempt": 2}}\n{json.dumps(line)}\n')
    assert newest_attempt(tmp_path) == 2
