"""Laws of runs as their folders tell them: what was trained from the metrics, the losses from the newest results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from framework.evaluation import scaling_fit
from framework.recipe.problem import RecipeError
from framework.tracking.metrics_file import MetricsFile
from framework.training.scaling import read_run, scaling

STEPS, TOKENS = 10, 1000.0


def trained(folder: Path, parameters: float, tokens: float, loss: float) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("{}\n", encoding="utf-8")
    metrics = MetricsFile(folder / "metrics.csv", 1, "sft")
    for step in range(2, STEPS + 1, 2):  # every second step is logged
        speed = {"tokens_per_s": tokens / STEPS / 0.5, "step_s": 0.5}
        dense = 6 * parameters * tokens / STEPS / 1e12
        metrics.log_metrics(
            {
                **speed,
                "throughput/dense_tflop": dense,
                "throughput/vision_tflop": dense,
                "throughput/recomputed_tflop": 1.0,
            },
            step,
        )
    sliced = {"loss": {"all": loss, "curve": 9.0}}
    stages = {
        "untrained": {"held_out_loss": {"loss": {"model": {"loss": {"all": 7.0}}}}},
        "sft": {
            "held_out_loss": {"loss": {"model": sliced}},
            "zero_shot": {"drive": {"model": {"ade": {"all": loss}}}},
        },
    }
    (folder / "results.json").write_text(json.dumps(stages), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_laws_are_fitted_to_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling_fit, "RESAMPLES", 10)
    runs = [
        trained(tmp_path / f"n={n:g},d={d:g}", n, d, 1.0 + 30.0 * n**-0.3 + 60.0 * d**-0.4)
        for n in (1e5, 3e5, 1e6)
        for d in (1e5, 1e6, 1e7)
    ]
    first = read_run(runs[0])
    assert first is not None
    assert (first.parameters, first.tokens) == pytest.approx((1e5, 1e5))
    assert first.compute == pytest.approx(2 * 6 * 1e5 * 1e5), "the recomputed FLOPs are no model FLOPs"
    assert first.figures["held_out_loss/loss/loss"] == pytest.approx(1.0 + 30.0 * 1e5**-0.3 + 60.0 * 1e5**-0.4)
    assert scaling([str(run) for run in runs]) == 0
    printed = capsys.readouterr().out
    assert "held_out_loss/loss/loss, 9 runs" in printed
    fit = json.loads((tmp_path / "scaling.json").read_text(encoding="utf-8"))["fits"]["held_out_loss/loss/loss"]
    assert (fit["law"]["alpha"], fit["law"]["beta"]) == pytest.approx((0.3, 0.4), abs=0.03)
    assert fit["predicted"] == pytest.approx(fit["measured"], rel=0.01)
    page = (tmp_path / "scaling.html").read_text(encoding="utf-8")
    assert page.count("data:image/svg+xml") == 2, "the loss and the zero-shot figure"


def test_too_few_runs_or_no_run_is_told(tmp_path: Path) -> None:
    run = trained(tmp_path / "one", 1e5, 1e5, 2.0)
    with pytest.raises(RecipeError, match="a law needs 6 of the same eval"):
        scaling([str(run)])
    with pytest.raises(RecipeError, match="no run"):
        scaling([str(tmp_path / "none")])
    (run / "metrics.csv").unlink()
    assert read_run(run) is None
