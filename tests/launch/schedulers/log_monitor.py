"""HyperPod's log monitoring as documented, to replay logs through rules.

Each line of a pod's standard output is matched by `re.match`. A rule reports a hang when its pattern has not matched
`expectedStartCutOffInSeconds` after the start, or `expectedRecurringFrequencyInSeconds` after the last match, unless
`stopPattern` has ended it. A captured number beyond `metricThreshold` in `metricEvaluationDataPoints` consecutive
matches is slow; not-a-number compares false and restarts the count; text that is no number ends all rules for that
line. A pattern that matches the empty text never hangs. `faultOnMatch` is an immediate fault.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

OPERATORS = {"gt": operator.gt, "gteq": operator.ge, "lt": operator.lt, "lteq": operator.le, "eq": operator.eq}


@dataclass
class Rule:
    """A rule and its state."""

    given: Mapping[str, Any]
    last: float | None = None
    slow: int = 0
    over: bool = False


@dataclass
class Monitor:
    """Replays a log. `verdicts` are triples of seconds since the start, rule and verdict."""

    rules: Iterable[Mapping[str, Any]]
    verdicts: list[tuple[float, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rules = [Rule(given) for given in self.rules]

    def line(self, at: float, text: str) -> None:
        """Read the line `text`, printed `at` seconds after the start."""
        self.wait(at)
        for rule in self._rules:
            given = rule.given
            if rule.over:
                continue
            if "stopPattern" in given and re.match(given["stopPattern"], text):
                rule.over = True
                continue
            match = re.match(given["logPattern"], text)
            if match is None:
                continue
            rule.last = at
            if given.get("faultOnMatch"):
                self.verdicts.append((at, given["name"], "FAULT"))
            if "metricThreshold" in given:
                try:
                    value = float(match[1])
                except ValueError:
                    return
                beyond = OPERATORS[given["operator"]](value, given["metricThreshold"])
                rule.slow = rule.slow + 1 if beyond else 0
                if rule.slow >= given.get("metricEvaluationDataPoints", 1):
                    self.verdicts.append((at, given["name"], "SLOW"))

    def wait(self, until: float) -> None:
        """Let time pass without a line, until `until` seconds after the start."""
        for rule in self._rules:
            start = rule.given.get("expectedStartCutOffInSeconds")
            again = rule.given.get("expectedRecurringFrequencyInSeconds")
            if rule.over or re.match(rule.given["logPattern"], ""):
                continue
            late = start is not None and rule.last is None and until > start
            silent = again is not None and rule.last is not None and until - rule.last > again
            if late or silent:
                self.verdicts.append((until, rule.given["name"], "HANGING"))
                rule.over = True
