"""Codec between boxes and text, in two forms: the ego frame's, and Qwen3-VL's own."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Annotated, Literal

import numpy as np
from annotated_types import Interval

from framework.model.codecs.decimals import decimal_pattern, positive_pattern, spell_decimal
from framework.recipe.component import component
from framework.recipe.ranges import Decimals
from framework.scene.frames import wrap_angle
from framework.scene.types import CLASSES, Boxes, SceneError

COLUMNS = ("x", "y", "z", "length", "width", "height", "yaw", "vx", "vy")
"""Names in a form of the columns of `Boxes.values`."""
SIZES = ("length", "width", "height")


@dataclass(frozen=True, slots=True)
class Form:
    """A textual form of boxes. Text, pattern and grammar all derive from it, so that they cannot disagree."""

    box: str
    """Format string of one box, of a label and columns."""
    begin: str
    """Text before the first box."""
    between: str
    """Text between two boxes."""
    end: str
    """Text after the last box."""
    empty: str
    """Text of no boxes."""
    instruction: str
    """What the prompt says of the form."""
    yaw_unit: float
    """Unit of yaw, in radians."""
    yaw_decimals: int
    """Decimal places of yaw."""
    yaw: str
    """Regular expression of the yaws that these allow."""


FORMS = {
    "ego": Form(
        box="{label} {x} {y} {z} {length} {width} {height} {yaw} {vx} {vy}",
        begin="",
        between="\n",
        end="",
        empty="none",
        instruction=(
            "One line per box, nearest first: label x y z length width height yaw vx vy; ego frame (x forward, y left, "
            "z up), metres, degrees, m/s; none when there are none."
        ),
        yaw_unit=math.pi / 180,
        yaw_decimals=0,
        yaw="-?(?:180|1[0-7][0-9]|[1-9]?[0-9])",
    ),
    "qwen": Form(
        box='{{"bbox_3d": [{x}, {y}, {z}, {length}, {width}, {height}, 0, 0, {yaw}], "label": "{label}"}}',
        begin="[",
        between=", ",
        end="]",
        empty="[]",
        instruction=(
            'JSON, nearest first: [{"bbox_3d": [x_center, y_center, z_center, x_size, y_size, z_size, roll, pitch, '
            'yaw], "label": "category"}]; ego frame (x forward, y left, z up), metres, angles in half turns.'
        ),
        yaw_unit=math.pi,
        yaw_decimals=2,
        yaw=r"-?(?:0\.[0-9]{2}|1\.00)",
    ),
}


@component
class BoxTextCodec:
    """Encodes boxes as text, nearest on the ground first.

    Form "ego" has one line per box: `car 12.3 -4.5 0.8 4.6 1.9 1.6 -90 0.0 3.2` is label, centre, size (m), yaw in
    whole degrees and velocity (m/s), all in the ego frame; `none` stands for no boxes. Form "qwen" is the backbone's
    3-D grounding (Qwen3-VL's cookbook), `[{"bbox_3d": [x, y, z, length, width, height, roll, pitch, yaw], "label":
    "car"}]` with angles in half turns. It is in the ego frame instead of the camera's, as the prompt states; roll and
    pitch are 0, and velocities, which it lacks, decode to 0.

    Unknown velocities are encoded as zero; sizes are positive. Decoded boxes have scores 1, 1/2, 1/3, ... in the order
    of the text: the nearest is the surest, and no two are equal.

    Args:
        max_boxes: Largest number of boxes, at least 1; the farthest beyond it are dropped.
        decimals: Decimal places of positions, sizes and velocities, at least 0.
        form: The textual form.

    Raises `ValueError` for arguments out of these ranges.
    """

    def __init__(
        self,
        max_boxes: Annotated[int, Interval(ge=1, le=1000)],
        decimals: Decimals = 1,
        form: Literal["ego", "qwen"] = "ego",
    ) -> None:
        if max_boxes < 1 or decimals < 0:
            raise ValueError(f"codecs.boxes: max_boxes {max_boxes} must be at least 1, decimals {decimals} at least 0")
        if form not in FORMS:
            raise ValueError(f"codecs.boxes.form is {form!r}: choose one of {', '.join(FORMS)}")
        self.max_boxes, self.decimals = max_boxes, decimals
        self._form = FORMS[form]
        self._fields = [name for _, name, _, _ in Formatter().parse(self._form.box) if name]
        self._box = re.compile(self._pattern("({})"))
        box, between = self._pattern("{}"), re.escape(self._form.between)
        boxes = f"{box}(?:{between}{box}){{0,{max_boxes - 1}}}"
        self._answer = re.compile(re.escape(self._form.begin) + boxes + re.escape(self._form.end))

    @property
    def needs(self) -> tuple[str, ...]:
        """Nothing but boxes."""
        return ()

    @property
    def tokens(self) -> tuple[str, ...]:
        """None: the form is plain text."""
        return ()

    @property
    def grammar(self) -> str:
        """See `BoxCodec`. Every repetition is bounded: a constrained answer always ends and always parses."""
        form = self._form
        begin, between, end, empty = map(json.dumps, (form.begin, form.between, form.end, form.empty))
        return (
            f"start: {empty} | {begin} BOX ({between} BOX){{0,{self.max_boxes - 1}}} {end}\n"
            f"BOX: /{self._pattern('{}')}/\n"
        )

    @property
    def instruction(self) -> str:
        """See `BoxCodec`."""
        return self._form.instruction

    def encode(self, boxes: Boxes, inputs: Boxes | None = None) -> str:
        """See `BoxCodec`; `inputs` are not used. Raises `SceneError` for a class that is not in `CLASSES`, and for a
        number that is not finite or too large.
        """
        if unknown := sorted(set(boxes.labels) - set(CLASSES)):
            raise SceneError(
                f"boxes: label {unknown[0]!r} is no class of the project; map it when the data is converted"
            )
        if not len(boxes):
            return self._form.empty
        values = np.array(boxes.values, dtype=np.float64)
        values[:, 3:6] = np.maximum(
            values[:, 3:6], 10.0**-self.decimals
        )  # no size may round to zero: a box has a volume
        values[:, 6] = wrap_angle(values[:, 6])
        values[:, 7:] = np.nan_to_num(values[:, 7:])
        nearest = np.argsort(np.hypot(values[:, 0], values[:, 1]), kind="stable")[: self.max_boxes]
        texts = [self._spell(boxes.labels[i], values[i].tolist()) for i in nearest]
        return self._form.begin + self._form.between.join(texts) + self._form.end

    def decode(self, text: str, inputs: Boxes | None = None, logprobs: Sequence[float] | None = None) -> Boxes | None:
        """See `BoxCodec`; `inputs` and `logprobs` are not used: a line's tokens depend on the tokenizer."""
        rows: list[dict[str, str]] = []
        if text != self._form.empty:
            if not self._answer.fullmatch(text):
                return None
            rows = [dict(zip(self._fields, values, strict=True)) for values in self._box.findall(text)]
        values = np.array([[float(row.get(name, 0)) for name in COLUMNS] for row in rows]).reshape(-1, len(COLUMNS))
        values[:, 6] = wrap_angle(values[:, 6] * self._form.yaw_unit)
        return Boxes(values, tuple(row["label"] for row in rows), scores=1.0 / np.arange(1, len(rows) + 1))

    def _spell(self, label: str, values: list[float]) -> str:
        numbers = dict(zip(COLUMNS, values, strict=True))
        yaw = numbers.pop("yaw") / self._form.yaw_unit
        texts = {name: spell_decimal(value, self.decimals, f"boxes: {name}") for name, value in numbers.items()}
        return self._form.box.format(
            label=label, yaw=spell_decimal(yaw, self._form.yaw_decimals, "boxes: yaw"), **texts
        )

    def _pattern(self, group: str) -> str:
        """The regular expression of one box, each field wrapped in `group`."""
        number, size = decimal_pattern(self.decimals), positive_pattern(self.decimals)
        kinds = dict.fromkeys(COLUMNS, number) | dict.fromkeys(SIZES, size) | {"yaw": self._form.yaw}
        kinds["label"] = f"(?:{'|'.join(CLASSES)})"
        parts = Formatter().parse(self._form.box)
        return "".join(re.escape(text) + (group.format(kinds[name]) if name else "") for text, name, _, _ in parts)
