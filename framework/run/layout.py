"""The names inside a run's folder. They are written and parsed here and nowhere else.

RUN/
    recipe.yaml, recipe.attempt-1.yaml         the resolved recipe; an attempt's, where a later one's differs
    provenance.json                            what set each value of the recipe
    code.json, code.diff, environment.json     what ran
    attempts.jsonl                             a line for each start and end of an attempt
    writer.json                                the process that writes in the folder now
    job.json, submissions.jsonl, job.log       the job, as it was submitted
    trial.json, trial.jsonl                    the search of which the run is a trial, and what it says of each report
    failures.jsonl                             a line for each failed attempt, from the supervisor
    coordinator.key                            by which the supervisors know each other; its owner's alone
    dropped.json                               how many messages and connections the coordinator dropped, by reason
    phases.node-0.jsonl                        what each node spent its time on
    checkpoints/step-00000100.attempt-2/       a checkpoint, committed when it has a COMMIT (contract 3)
    ledger/                                    the sample ids of every step (contract 2)
    evaluations/step-00000100.0123456789ab/    the evaluations of that step's weights, by the checkpoint's hash
    best.json                                  the best checkpoint by evaluation
    metrics.csv, results.json, report.html     what the training logged, what its evals found, and the page of both
    evaluated.json                             the step and the hash of the weights that the results are of
    scenes/broad.held_out.jsonl                what an eval measured of each scene, by stage
    rollouts/step-00000100.html                answers of a reinforcement-learning step
    predictions/part-000000.parquet            what a model predicts about a source, and of which weights and source
    predictions.html                           the worst of these
    profiles/                                  traces and memory snapshots
    compiled/                                  what torch compiled, for the next attempt
    peak_flops.json, data_pace.json            what was measured of the device and of the data workers
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

RUNS = Path("outputs/runs")
"""Where a run is searched that is given by its name."""
RECIPE_FILE = "recipe.yaml"
EXPORTED_RECIPE_FILE = "training_recipe.yaml"
"""The recipe in an exported folder. It has another name, since an export is no run: nothing resumes it."""
PROVENANCE_FILE = "provenance.json"
CODE_FILE = "code.json"
CODE_DIFF_FILE = "code.diff"
ENVIRONMENT_FILE = "environment.json"
ATTEMPTS_FILE = "attempts.jsonl"
WRITER_FILE = "writer.json"
JOB_FILE = "job.json"
SUBMISSIONS_FILE = "submissions.jsonl"
JOB_LOG_FILE = "job.log"
TRIAL_FILE = "trial.json"
VERDICTS_FILE = "trial.jsonl"
FAILURES_FILE = "failures.jsonl"
COORDINATOR_KEY_FILE = "coordinator.key"
DROPPED_FILE = "dropped.json"
BEST_FILE = "best.json"
METRICS_FILE = "metrics.csv"
RESULTS_FILE = "results.json"
EVALUATED_FILE = "evaluated.json"
REPORT_FILE = "report.html"
PEAK_FLOPS_FILE = "peak_flops.json"
DATA_PACE_FILE = "data_pace.json"
CHECKPOINTS = "checkpoints"
COMMIT = "COMMIT"
EVALUATIONS = "evaluations"
WANTED_FILE = "wanted.json"
LEDGER = "ledger"
ROLLOUTS = "rollouts"
PROFILES = "profiles"
COMPILED = "compiled"
SCENES = "scenes"
PREDICTIONS = "predictions"
PREDICTIONS_PAGE = "predictions.html"

LONGEST_STEM = 100
"""Characters of a name in a file's name before its hash. File systems allow 255 bytes, and a file that is being written
carries the name of its node, too.
"""
_CHECKPOINT = re.compile(r"step-(\d+)\.attempt-(\d+)")


class SavedStep(NamedTuple):
    """A checkpoint's folder by its name. Sorted, the newest is last: of one step, the later attempt's."""

    step: int
    """Optimizer steps that the weights have had, counted over the whole curriculum."""
    attempt: int
    """The attempt that wrote it."""
    folder: Path
    """The checkpoint's folder."""

    @property
    def committed(self) -> bool:
        """Whether the checkpoint has a COMMIT, without which it does not exist for anybody (contract 3)."""
        return (self.folder / COMMIT).is_file()

    @property
    def hash(self) -> str:
        """The hash of all that the checkpoint holds, by its COMMIT. Raises `OSError` where it has none."""
        return (self.folder / COMMIT).read_text(encoding="ascii").strip()


def named_run(name: str) -> Path | None:
    """The folder of the run that is given by its folder or by its name below `RUNS`; None where there is no recipe."""
    return next((folder for folder in (Path(name), RUNS / name) if (folder / RECIPE_FILE).is_file()), None)


def run_names() -> list[str]:
    """The names of the runs below `RUNS`, those of sweeps among them."""
    files = [file for depth in ("*", "*/*") for file in RUNS.glob(f"{depth}/{RECIPE_FILE}")]
    return sorted(file.parent.relative_to(RUNS).as_posix() for file in files)


def file_stem(name: str) -> str:
    """`name` as a part of a file's name, such as `held_out.json`: what a file system would refuse, or read as a folder,
    is told by a hash.
    """
    plain = re.sub(r"^\.|[^\w=.,+-]+", "_", name, flags=re.ASCII)
    if plain == name and len(name) <= LONGEST_STEM:
        return name
    return f"{plain[:LONGEST_STEM]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def step_name(step: int) -> str:
    """The name of what belongs to a step: `step-00000100`."""
    return f"step-{step:08d}"


def checkpoint_name(step: int, attempt: int) -> str:
    """The name of the checkpoint of `step` by `attempt`: `step-00000100.attempt-2`. No two attempts share a folder."""
    return f"{step_name(step)}.attempt-{attempt}"


def parse_checkpoint(folder: Path) -> SavedStep | None:
    """What the name of a checkpoint's folder says; None for any other name."""
    match = _CHECKPOINT.fullmatch(folder.name)
    return SavedStep(int(match[1]), int(match[2]), folder) if match else None


def saved_steps(checkpoints: Path) -> list[SavedStep]:
    """The checkpoints in the folder `checkpoints`, committed or not, oldest first."""
    saved = (parse_checkpoint(folder) for folder in checkpoints.glob("step-*"))
    return sorted(each for each in saved if each is not None)


def committed_steps(checkpoints: Path) -> list[SavedStep]:
    """The committed checkpoints in the folder `checkpoints`, oldest first."""
    return [saved for saved in saved_steps(checkpoints) if saved.committed]


def phases_file(run: Path, node: int) -> Path:
    """The ledger of the phases of `node` in the folder of a run."""
    return run / f"phases.node-{node}.jsonl"


def phases_files(run: Path) -> list[Path]:
    """The ledgers of all nodes' phases in the folder of a run, by name."""
    return sorted(run.glob("phases.node-*.jsonl"))


def scenes_file(run: Path, stage: str, evaluator: str) -> Path:
    """What `evaluator` measured of each scene after `stage`, in the folder of a run."""
    return run / SCENES / f"{file_stem(stage)}.{file_stem(evaluator)}.jsonl"


def superseded_recipe_file(run: Path, attempt: int) -> Path:
    """Where the recipe of an attempt is kept once a later attempt's differs."""
    return run / f"recipe.attempt-{attempt}.yaml"
