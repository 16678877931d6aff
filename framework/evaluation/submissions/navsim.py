"""NAVSIM's submission: a pickle of trajectories, written without NAVSIM and read without trusting it.

Source: autonomousvision/navsim, `navsim/planning/script/run_create_submission_pickle.py` and
`navsim/common/dataclasses.py`; `TrajectorySampling` is nuPlan's. NAVSIM pins numpy 1.23, which knows arrays by another
module than the numpy that writes here: names are written as NAVSIM's environment has them.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from framework.evaluation.submissions.agent_files import check_agent, write_agent
from framework.evaluation.submissions.plans import at_times, refuse_empty
from framework.recipe.component import component
from framework.run.files import replacing
from framework.scene.types import FloatArray

FILE, AGENT = "submission.pkl", "navsim_agent"
POSES, PERIOD_S = 8, 0.5
TIMES = PERIOD_S * np.arange(1, POSES + 1)
"""Times (s) of a trajectory's poses."""
PROTOCOL = 4
"""The pickle protocol that Python 3.9, NAVSIM's, reads as well."""


class Name(NamedTuple):
    """A class or function of NAVSIM's environment, which need not exist here."""

    module: str
    """Its module."""
    name: str
    """Its name."""

    def __call__(self) -> None:
        """Never called: pickle writes the name of what it takes to be a function."""


TRAJECTORY = Name("navsim.common.dataclasses", "Trajectory")
SAMPLING = Name("nuplan.planning.simulation.trajectory.trajectory_sampling", "TrajectorySampling")
NEW, OBJECT = Name("copyreg", "_reconstructor"), Name("builtins", "object")
ARRAY, NDARRAY, DTYPE = Name("numpy.core.multiarray", "_reconstruct"), Name("numpy", "ndarray"), Name("numpy", "dtype")


class Record(NamedTuple):
    """An object of a class that need not exist here."""

    of: Name
    """The class."""
    fields: dict[str, Any]
    """Its attributes."""


@component
class NavsimSubmission:
    """A submission to NAVSIM's leaderboards: `submission.pkl`, of 8 poses each from 0.5 s to 4 s; and an agent for
    NAVSIM's own runs, `navsim_agent.py`, which asks `serve`.

    A scene's name is its token. What is re-read is read by an unpickler that knows numbers, texts and the two classes
    of a trajectory, and refuses all else.

    Args:
        team_name: The team's name on the leaderboard.
        authors: The authors' names.
        email: The address of the leaderboard's account.
        institution: The authors' institution.
        country: Country or region.
        second_stage: Tokens of second-stage scenes, which v2 lists apart; empty: all are of the first stage.
    """

    needs_plans = True

    def __init__(
        self,
        team_name: str | None = None,
        authors: str | None = None,
        email: str | None = None,
        institution: str | None = None,
        country: str | None = None,
        second_stage: list[str] | None = None,
    ) -> None:
        self.about = {"team_name": team_name, "authors": authors, "email": email, "institution": institution,
                      "country / region": country}  # fmt: skip
        self.second_stage = set(second_stage or ())

    def write(self, plans: Mapping[str, FloatArray], folder: Path) -> list[Path]:
        """See `Submission`."""
        refuse_empty("NAVSIM", {name.split(" ")[0]: value for name, value in self.about.items()})
        if unknown := sorted(self.second_stage - set(plans)):
            raise ValueError(f"task.form.second_stage: {unknown[0]} is no scene of the predictions")
        poses = {token: at_times(token, plan, TIMES).astype(np.float32) for token, plan in plans.items()}
        stages: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        for token, values in poses.items():
            stages[token in self.second_stage][token] = _trajectory(values)
        content: dict[str, Any] = {**self.about, "first_stage_predictions": [stages[0]],
                                   "second_stage_predictions": [stages[1]]}  # fmt: skip
        if not self.second_stage:  # v1 reads this key, v2 the two others
            content["predictions"] = [stages[0]]
        with replacing(folder / FILE) as fresh, fresh.open("wb") as file:
            _Writer(file, PROTOCOL).dump(content)
        return [folder / FILE, *write_agent(AGENT, folder)]

    def check(self, plans: Mapping[str, FloatArray], folder: Path) -> str:
        """See `Submission`."""
        found = read_submission(folder / FILE)
        stages = [found["first_stage_predictions"][0], found["second_stage_predictions"][0]]
        poses = {token: each.fields["poses"] for stage in stages for token, each in stage.items()}
        if poses.keys() != plans.keys():
            raise ValueError(f"{folder / FILE}: holds {len(poses)} scenes of {len(plans)}; write it again")
        for token, plan in plans.items():
            if not np.allclose(poses[token], at_times(token, plan, TIMES), atol=1e-3):
                raise ValueError(f"{folder / FILE}: scene {token}: the poses are not the plan's; write it again")
        agent = check_agent(AGENT, folder)
        return f"{len(stages[0])} + {len(stages[1])} trajectories of {POSES} poses; {agent}"


def read_submission(file: Path) -> dict[str, Any]:
    """The content of a submission, with `Record` in place of NAVSIM's classes. Raises `ValueError` for a pickle that
    names anything else.
    """
    try:
        content: dict[str, Any] = _Reader(io.BytesIO(file.read_bytes())).load()
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{file}: {error}: is no submission") from error
    return content


def _trajectory(poses: FloatArray) -> Record:
    horizon = {"num_poses": POSES, "time_horizon": POSES * PERIOD_S, "interval_length": PERIOD_S}
    return Record(TRAJECTORY, {"poses": poses, "trajectory_sampling": Record(SAMPLING, horizon)})


class _Writer(pickle._Pickler):
    """Writes names that need not exist here: the C pickler looks each of them up."""

    def reducer_override(self, value: Any) -> Any:
        """How a value is made again where it is read."""
        if isinstance(value, Record):
            return NEW, (value.of, OBJECT, None), value.fields
        if isinstance(value, np.ndarray):
            dtype = value.dtype.str.lstrip("<=|>")
            state = (1, value.shape, _Dtype(dtype), False, value.astype(value.dtype.newbyteorder("<")).tobytes())
            return ARRAY, (NDARRAY, (0,), b"b"), state
        if isinstance(value, _Dtype):
            return DTYPE, (value.code, False, True), (3, "<", None, None, None, -1, -1, 0)
        return NotImplemented

    def save(self, value: Any, save_persistent_id: bool = True) -> None:
        """Write a value; a name is written as it is."""
        if isinstance(value, Name):
            self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())  # type: ignore[attr-defined]
        else:
            super().save(value, save_persistent_id)  # type: ignore[misc]


class _Dtype(NamedTuple):
    """A type of numbers by its code, as `f4`."""

    code: str


class _Reader(pickle.Unpickler):
    """Reads numbers, texts, arrays and trajectories. It calls nothing that a file names."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name. Raises `UnpicklingError` for any that no submission has."""
        known = {
            NEW: lambda of, base, state: of(), OBJECT: object, DTYPE: np.dtype,
            TRAJECTORY: lambda: _Fields(TRAJECTORY), SAMPLING: lambda: _Fields(SAMPLING),
            ARRAY: np.zeros(0).__reduce__()[0], NDARRAY: np.ndarray,
        }  # fmt: skip
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"names {module}.{name}, which no submission does")
        return known[Name(module, name)]


class _Fields:
    """An object that is being read."""

    def __init__(self, of: Name) -> None:
        self.of, self.fields = of, dict[str, Any]()

    def __setstate__(self, fields: dict[str, Any]) -> None:
        self.fields = fields
