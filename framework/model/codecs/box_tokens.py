"""Codec between boxes and discrete tokens, in which an answer can point at a box of the prompt."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Interval

from framework.model.codecs.boxes import COLUMNS
from framework.recipe.component import component
from framework.recipe.ranges import Metres
from framework.scene.frames import wrap_angle
from framework.scene.types import CLASSES, Boxes, FloatArray, SceneError

Column = Literal["x", "y", "z", "length", "width", "height", "yaw", "vx", "vy"]
HEIGHT_M, SPEED = 8.0, 40.0
"""Largest height of a centre above or below the origin (m), and largest speed along an axis (m/s), of a new box."""
SIZE_M = (0.1, 25.0)
"""Smallest and largest size of a new box (m)."""
LARGEST_RATIO, SPEED_CHANGE = 2.0, 10.0
"""Largest correction of a size (a ratio) and of a speed along an axis (m/s), either way."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The bins of one quantity, evenly spaced from `low` to `high`."""

    low: float
    """The first bin's value."""
    high: float
    """The last bin's value; of angles, the value that is the first bin's again."""
    kind: Literal["linear", "logarithm", "angle"] = "linear"
    """Whether a bin is of the value, of its logarithm, or of an angle."""

    def step(self, bins: int) -> float:
        """The distance of two bins, of a logarithm that of the logarithms."""
        low, high = self._ends()
        return (high - low) / (bins if self.kind == "angle" else bins - 1)

    def index(self, value: float, bins: int) -> int:
        """The bin nearest to `value`; beyond the ends, the last one there."""
        low, _ = self._ends()
        place = math.log(max(value, self.low)) if self.kind == "logarithm" else value
        if self.kind == "angle":
            return round((float(wrap_angle(np.asarray(place))) - low) / self.step(bins)) % bins
        return min(max(round((place - low) / self.step(bins)), 0), bins - 1)

    def value(self, index: int, bins: int) -> float:
        """The value of a bin."""
        place = self._ends()[0] + index * self.step(bins)
        if self.kind == "angle":
            return float(wrap_angle(np.asarray(place)))
        return math.exp(place) if self.kind == "logarithm" else place

    def _ends(self) -> tuple[float, float]:
        return (math.log(self.low), math.log(self.high)) if self.kind == "logarithm" else (self.low, self.high)


@component
class BoxTokenCodec:
    """Encodes boxes as special tokens, each a class, a number or a reference (Pix2Seq: Chen et al. 2022, arXiv
    2109.10852), all in the ego frame.

    First comes every box of the perception stack that the prompt shows, nearest first: a reference
    `<|ref_k|>` to the k-th of them, then `<|no_object|>` or the class of the object that it stands for and a bin for
    each of the `corrected` quantities, which is the object's difference from the input (of sizes, the ratio). What is
    not corrected is the input's. Then come the other objects, nearest first: `<|new_box|>`, the class, and a bin for
    each of the nine quantities. The turn's end is the list's.

    All quantities share the bins' tokens; a token's place says which quantity it counts. `<|no_object|>` is Pix2Seq's
    "noise" class: the answer judges every input, in an order that is fixed, so that the probability of the class is a
    confidence.

    An input stands for the nearest object on the ground within `match_m` that no nearer pair has taken. Objects beyond
    `range_m` are left out. Numbers beyond their scale are clipped to it. Unknown velocities are taught as those of the
    input, and of a new box as zero.

    Args:
        references: Boxes of the prompt that an answer can point at, from the nearest on: `data.sensors.boxes.max_boxes`
            where the prompt shows the perception stack's boxes, else 0. The encoder tells them apart by its own
            `references`.
        max_new: Most boxes of an answer that are none of the prompt's; the farthest beyond it are dropped.
        corrected: The quantities of an input that the answer corrects.
        bins: Number of bins, at least 3 and odd, so that zero is a bin.
        range_m: Largest x and y either way (m).
        match_m: Largest distance (m) of an input from the object that it stands for, and largest correction of a place.

    Raises `ValueError` for an even number of bins, and where answers could hold no box.
    """

    def __init__(
        self,
        references: Annotated[int, Interval(ge=0, le=1000)] = 0,
        max_new: Annotated[int, Interval(ge=0, le=1000)] = 40,
        corrected: Sequence[Column] = COLUMNS,  # type: ignore[assignment]  # the columns are literals
        bins: Annotated[int, Interval(ge=3, le=2049)] = 401,
        range_m: Metres = 60.0,
        match_m: Metres = 4.0,
    ) -> None:
        if bins < 3 or bins % 2 == 0:
            raise ValueError(f"codecs.boxes.bins is {bins}: give an odd number, at least 3, so that zero is a bin")
        if references + max_new < 1:
            raise ValueError("codecs.boxes: with references 0 and max_new 0 an answer holds no box; raise one of them")
        if unknown := sorted(set(corrected) - set(COLUMNS)):
            raise ValueError(f"codecs.boxes.corrected: {unknown[0]!r} is none of {', '.join(COLUMNS)}")
        self.references, self.max_new, self.bins = references, max_new, bins
        self.range_m, self.match_m = range_m, match_m
        self.corrected = [COLUMNS.index(name) for name in dict.fromkeys(corrected)] if references else []
        size, turn = Scale(*SIZE_M, "logarithm"), Scale(-math.pi, math.pi, "angle")
        ratio, place = Scale(1 / LARGEST_RATIO, LARGEST_RATIO, "logarithm"), Scale(-match_m, match_m)
        ground, speed, change = Scale(-range_m, range_m), Scale(-SPEED, SPEED), Scale(-SPEED_CHANGE, SPEED_CHANGE)
        self.scales = (ground, ground, Scale(-HEIGHT_M, HEIGHT_M), size, size, size, turn, speed, speed)
        """Of a new box's columns."""
        self.corrections = (place, place, place, ratio, ratio, ratio, turn, change, change)
        """Of an input's columns."""
        label, number = r"<\|class_([a-z_]+)\|>", r"<\|bin_[0-9]+\|>"
        self._box = re.compile(
            rf"<\|ref_([0-9]+)\|>(?:<\|no_object\|>|{label}((?:{number}){{{len(self.corrected)}}}))"
            rf"|<\|new_box\|>{label}((?:{number}){{{len(COLUMNS)}}})"
        )

    @property
    def needs(self) -> tuple[str, ...]:
        """The perception stack's boxes, where an answer can do nothing but refer to them."""
        return () if self.max_new else ("perception",)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The special tokens: references, `<|no_object|>`, `<|new_box|>`, classes and bins, as far as answers use
        them.
        """
        references = (*(f"<|ref_{k}|>" for k in range(self.references)), "<|no_object|>") if self.references else ()
        bins = tuple(f"<|bin_{i}|>" for i in range(self.bins)) if self.max_new or self.corrected else ()
        return (*references, *(("<|new_box|>",) if self.max_new else ()), *_class_tokens(), *bins)

    @property
    def grammar(self) -> str:
        """See `BoxCodec`. References come in order, each at most once."""
        rules = [f"label: {' | '.join(_class_tokens())}"]
        if self.max_new or self.corrected:
            rules.append(f"number: {' | '.join(f'<|bin_{i}|>' for i in range(self.bins))}")
        start = ["ref_0?"] if self.references else []
        for k in range(self.references):
            following = f" ref_{k + 1}?" if k + 1 < self.references else ""
            rules.append(f"ref_{k}: <|ref_{k}|> verdict{following}")
        if self.references:
            numbers = f" number{{{len(self.corrected)}}}" if self.corrected else ""
            rules.append(f"verdict: <|no_object|> | label{numbers}")
        if self.max_new:
            start.append(f"new_box{{0,{self.max_new}}}")
            rules.append(f"new_box: <|new_box|> label number{{{len(COLUMNS)}}}")
        return f"start: {' '.join(start)}\n" + "\n".join(rules) + "\n"

    @property
    def instruction(self) -> str:
        """See `BoxCodec`."""
        parts = []
        if self.references:
            corrections = ", ".join(COLUMNS[column] for column in self.corrected)
            bins = f" with bins of corrections of {corrections}" if self.corrected else ""
            parts.append(f"For each given box, nearest first: its reference, then no object or its class{bins}.")
        if self.max_new:
            parts.append(f"For each other object, nearest first: class and bins of {', '.join(COLUMNS)}.")
        return " ".join([*parts, "Ego frame (x forward, y left, z up)."])

    def encode(self, boxes: Boxes, inputs: Boxes | None = None) -> str:
        """See `BoxCodec`. Raises `SceneError` for a class that is not in `CLASSES` and for a number that is not
        finite.
        """
        if unknown := sorted(set(boxes.labels) - set(CLASSES)):
            raise SceneError(
                f"boxes: label {unknown[0]!r} is no class of the project; map it when the data is converted"
            )
        if not np.isfinite(boxes.values[:, :7]).all():
            raise SceneError("boxes: a pose is not finite; repair the recording or drop the box")
        boxes = boxes.take(np.abs(boxes.values[:, :2]).max(axis=1, initial=0.0) <= self.range_m)
        boxes, shown = boxes.nearest(len(boxes)), self._shown(inputs)
        object_of = match_nearest(shown.values, boxes.values, self.match_m)
        words = []
        for k, row in enumerate(object_of):
            words.append(f"<|ref_{k}|>")
            if row is None:
                words.append("<|no_object|>")
            else:
                words += [f"<|class_{boxes.labels[row]}|>", *self._correction(shown.values[k], boxes.values[row])]
        new = [row for row in range(len(boxes)) if row not in object_of]
        for row in new[: self.max_new]:
            values = np.nan_to_num(boxes.values[row]).tolist()
            numbers = [scale.index(value, self.bins) for scale, value in zip(self.scales, values, strict=True)]
            words += ["<|new_box|>", f"<|class_{boxes.labels[row]}|>", *(f"<|bin_{i}|>" for i in numbers)]
        return "".join(words)

    def decode(self, text: str, inputs: Boxes | None = None, logprobs: Sequence[float] | None = None) -> Boxes | None:
        """See `BoxCodec`. A box's score is the probability of its class, of a new box times that of being one; without
        `logprobs` scores are 1, 1/2, 1/3, ... None also for a reference to a box that the prompt does not show, and
        references out of order.
        """
        shown, rows, labels, scores = self._shown(inputs), list[FloatArray](), list[str](), list[float]()
        position = token = 0
        last = -1
        while position < len(text):
            match = self._box.match(text, position)
            if match is None:
                return None
            position = match.end()
            reference, label, corrections, new_label, numbers = match.groups()
            bins = [int(number) for number in re.findall(r"bin_([0-9]+)", corrections or numbers or "")]
            if any(number >= self.bins for number in bins) or (label or new_label or CLASSES[0]) not in CLASSES:
                return None
            if reference is not None:
                k = int(reference)
                if not last < k < len(shown) or f"<|ref_{k}|>" != f"<|ref_{reference}|>":
                    return None
                last = k
            if reference is None or label is not None:
                rows.append(self._new(bins) if reference is None else self._corrected(shown.values[last], bins))
                labels.append(label or new_label)
                certain = slice(token, token + 2) if reference is None else slice(token + 1, token + 2)
                scores.append(1 / (len(scores) + 1) if logprobs is None else math.exp(sum(logprobs[certain])))
            token += 2 + len(bins)
        return Boxes(np.array(rows).reshape(-1, len(COLUMNS)), tuple(labels), scores=np.array(scores))

    def _shown(self, inputs: Boxes | None) -> Boxes:
        """The inputs that an answer can point at, in the prompt's order."""
        return Boxes(np.zeros((0, len(COLUMNS))), ()) if inputs is None else inputs.nearest(self.references)

    def _correction(self, given: FloatArray, true: FloatArray) -> Iterator[str]:
        for column in self.corrected:
            scale, here, wanted = self.corrections[column], float(given[column]), float(true[column])
            here = 0.0 if math.isnan(here) else here
            wanted = here if math.isnan(wanted) else wanted
            change = wanted / max(here, SIZE_M[0]) if scale.kind == "logarithm" else wanted - here
            yield f"<|bin_{scale.index(change, self.bins)}|>"

    def _corrected(self, given: FloatArray, bins: list[int]) -> FloatArray:
        values = np.nan_to_num(np.array(given, dtype=np.float64))
        for column, number in zip(self.corrected, bins, strict=True):
            scale = self.corrections[column]
            change = scale.value(number, self.bins)
            here = float(values[column])
            values[column] = max(here, SIZE_M[0]) * change if scale.kind == "logarithm" else here + change
        values[6] = wrap_angle(values[6])
        return values

    def _new(self, bins: list[int]) -> FloatArray:
        return np.array([scale.value(number, self.bins) for scale, number in zip(self.scales, bins, strict=True)])


def match_nearest(inputs: FloatArray, objects: FloatArray, limit: float) -> list[int | None]:
    """For each row of `inputs` `(n, 9)` the row of `objects` `(m, 9)` that it stands for: pairs are taken by ascending
    distance on the ground, up to `limit` (m), each row once.
    """
    distances = np.hypot(*(inputs[:, None, :2] - objects[None, :, :2]).transpose(2, 0, 1))
    found: list[int | None] = [None] * len(inputs)
    for place in np.argsort(distances, axis=None, kind="stable").tolist():
        k, row = divmod(place, len(objects))
        if distances[k, row] > limit:
            break
        if found[k] is None and row not in found:
            found[k] = row
    return found


def _class_tokens() -> Iterator[str]:
    return (f"<|class_{label}|>" for label in CLASSES)
