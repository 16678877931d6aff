"""Hard scenes: which are kept, which are dropped, and how often each is drawn."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from framework.objective.scene_replay import Measured, SceneReplay


def measured(success: float, step: int = 0) -> Measured:
    return Measured({"sample": 1}, success * 4, 4, step)


def test_scenes_are_kept_while_they_are_hard_and_their_measure_is_fresh() -> None:
    replay = SceneReplay(low=0.25, high=0.5, max_age=10)
    kept = replay.updated({}, {"a": measured(0.25), "b": measured(0.5), "c": measured(0.75), "d": measured(0.0)}, 0)
    assert list(kept) == ["a", "b"]
    again = replay.updated(kept, {"a": measured(1.0, 4), "e": measured(0.5, 4)}, 4)
    assert list(again) == ["b", "e"], "what succeeds now is dropped"
    assert list(replay.updated(again, {}, 9)) == ["b", "e"]
    assert list(replay.updated(again, {}, 10)) == ["e"]
    assert replay.updated({}, {"solved": measured(1.0)}, 0) == {}
    assert SceneReplay(high=1.0).updated({}, {"solved": measured(1.0)}, 0) == {}, "nothing can be learned of it"


def test_of_too_many_the_oldest_measures_go() -> None:
    new = {name: measured(0.0, step) for name, step in zip("abcd", (3, 1, 2, 3), strict=True)}
    assert list(SceneReplay(size=3).updated({}, new, 3)) == ["a", "c", "d"]
    assert list(SceneReplay(size=1).updated({}, new, 3)) == ["a"], "of equally old ones, by name"


def test_failures_are_drawn_in_proportion() -> None:
    kept = {"never": measured(0.0), "half": measured(0.5), "often": measured(0.75)}
    numbers = (np.arange(7000) + 0.5) / 7000
    counts = Counter(SceneReplay().choose(kept, number) for number in numbers)
    assert counts == {"never": 4000, "half": 2000, "often": 1000}
    alike = Counter(SceneReplay(power=0).choose(kept, number) for number in numbers[:6999])
    assert max(alike.values()) - min(alike.values()) <= 2


def test_bounds_that_hold_nothing_are_refused() -> None:
    for wrong in ({"low": 0.6, "high": 0.5}, {"size": 0}, {"max_age": 0}):
        with pytest.raises(ValueError, match="prompt_weights: low"):
            SceneReplay(**wrong)  # type: ignore[arg-type]
