"""The submission of Waymo's end-to-end driving challenge: a serialized `E2EDChallengeSubmission` in an archive.

Source: waymo-research/waymo-open-dataset, `protos/end_to_end_driving_submission.proto` @508fb26. The package that
brings the generated code needs TensorFlow and an old Python, so that the messages are declared here; protobuf writes
them.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from framework.evaluation.submissions.plans import at_times, refuse_empty
from framework.recipe.component import component
from framework.run.files import replacing
from framework.scene.types import FloatArray

FILE, PART = "submission.tar.gz", "mysubmission.binproto-00000-of-00001"
"""The archive, and the one file in it, named as the challenge's own notebook does."""
TIMES = 0.25 * np.arange(1, 21)
"""Times (s) of a trajectory's positions."""
PACKAGE = "waymo.open_dataset"
E2ED_SUBMISSION = 1
MESSAGES = {
    "TrajectoryPrediction": {"pos_x": (1, "packed"), "pos_y": (2, "packed")},
    "FrameTrajectoryPredictions": {"frame_name": (1, "string"), "trajectory": (2, "TrajectoryPrediction")},
    "E2EDChallengeSubmission": {
        "predictions": (1, "FrameTrajectoryPredictions*"), "submission_type": (2, "enum"),
        "account_name": (3, "string"), "unique_method_name": (4, "string"), "authors": (5, "string*"),
        "affiliation": (6, "string"), "description": (7, "string"), "method_link": (8, "string"),
        "uses_public_model_pretraining": (11, "bool"), "num_model_parameters": (12, "string"),
        "public_model_names": (13, "string*"),
    },
}  # fmt: skip
"""The fields of each message: number and kind; a star repeats, `packed` are repeated floats."""
PARAMETERS = re.compile(r"[0-9]+[KMBT]")


@component
class WodE2eSubmission:
    """A submission to the challenge: `submission.tar.gz`, of 20 positions each from 0.25 s to 5 s. A scene's name is
    that of its frame.

    Args:
        account_name: The address of the account at waymo.com/open.
        unique_method_name: The method's name on the leaderboard.
        authors: The authors' names.
        affiliation: Their affiliation.
        num_model_parameters: A whole number with K, M, B or T, as "2B".
        uses_public_model_pretraining: Whether the model began with public weights.
        public_model_names: Which ones.
        description: What the method is.
        method_link: Where it is described.
    """

    needs_plans = True

    def __init__(
        self,
        account_name: str | None = None,
        unique_method_name: str | None = None,
        authors: Sequence[str] = (),
        affiliation: str | None = None,
        num_model_parameters: str | None = None,
        uses_public_model_pretraining: bool = True,
        public_model_names: Sequence[str] = (),
        description: str = "",
        method_link: str = "",
    ) -> None:
        self.needed = {"account_name": account_name, "unique_method_name": unique_method_name,
                       "authors": list(authors), "num_model_parameters": num_model_parameters}  # fmt: skip
        self.more = {"affiliation": affiliation or "", "description": description, "method_link": method_link,
                     "uses_public_model_pretraining": uses_public_model_pretraining,
                     "public_model_names": list(public_model_names)}  # fmt: skip

    def write(self, plans: Mapping[str, FloatArray], folder: Path) -> list[Path]:
        """See `Submission`. Raises `ModuleNotFoundError` without the extra `submissions`."""
        refuse_empty("the challenge", self.needed)
        parameters = str(self.needed["num_model_parameters"])
        if not PARAMETERS.fullmatch(parameters):
            raise ValueError(f"task.form.num_model_parameters: {parameters!r}; give a whole number with K, M, B or T")
        if self.more["uses_public_model_pretraining"] and not self.more["public_model_names"]:
            raise ValueError("task.form.public_model_names: is empty; name the public models, or set "
                             "uses_public_model_pretraining=false")  # fmt: skip
        message = messages()["E2EDChallengeSubmission"](submission_type=E2ED_SUBMISSION, **self.needed, **self.more)
        for name, plan in plans.items():
            positions = at_times(name, plan, TIMES)
            trajectory = {"pos_x": positions[:, 0].tolist(), "pos_y": positions[:, 1].tolist()}
            message.predictions.add(frame_name=name, trajectory=trajectory)
        content = message.SerializeToString(deterministic=True)
        with replacing(folder / FILE) as fresh, tarfile.open(fresh, "w:gz") as archive:
            part = tarfile.TarInfo(PART)
            part.size = len(content)
            archive.addfile(part, io.BytesIO(content))
        return [folder / FILE]

    def check(self, plans: Mapping[str, FloatArray], folder: Path) -> str:
        """See `Submission`."""
        found = read_submission(folder / FILE)
        names = [each.frame_name for each in found.predictions]
        if sorted(names) != sorted(plans):
            raise ValueError(f"{folder / FILE}: holds {len(names)} frames of {len(plans)}; write it again")
        for each in found.predictions:
            positions = np.stack([each.trajectory.pos_x, each.trajectory.pos_y], axis=1)
            if not np.allclose(positions, at_times(each.frame_name, plans[each.frame_name], TIMES)[:, :2], atol=1e-3):
                raise ValueError(f"{folder / FILE}: frame {each.frame_name}: is not the plan; write it again")
        return f"{len(names)} frames of {len(TIMES)} positions, method {found.unique_method_name}"


def read_submission(file: Path) -> Any:
    """The message in an archive. Raises `ValueError` where it is none."""
    from google.protobuf.message import DecodeError

    with tarfile.open(file) as archive:
        part = archive.extractfile(PART)
        assert part is not None  # a plain file, or KeyError
        try:
            return messages()["E2EDChallengeSubmission"].FromString(part.read())
        except DecodeError as error:
            raise ValueError(f"{file}: {error}: is no submission") from error


@cache
def messages() -> dict[str, Any]:
    """The messages' classes by name."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    kinds = {"string": field.TYPE_STRING, "bool": field.TYPE_BOOL, "enum": field.TYPE_ENUM, "packed": field.TYPE_FLOAT}
    file = descriptor_pb2.FileDescriptorProto(name="e2e_submission.proto", package=PACKAGE, syntax="proto2")
    for message, fields in MESSAGES.items():
        declared = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            plain, repeated = kind.rstrip("*"), kind.endswith("*") or kind == "packed"
            made = declared.field.add(name=name, number=number, type=kinds.get(plain, field.TYPE_MESSAGE),
                                      label=field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL)  # fmt: skip
            if plain in MESSAGES:
                made.type_name = f".{PACKAGE}.{plain}"
            elif plain == "enum":
                made.type_name = f".{PACKAGE}.{message}.SubmissionType"
                values = declared.enum_type.add(name="SubmissionType").value
                values.add(name="UNKNOWN", number=0)
                values.add(name="E2ED_SUBMISSION", number=E2ED_SUBMISSION)
            elif plain == "packed":
                made.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in MESSAGES}
