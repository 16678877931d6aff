"""Boxes as text, in a form of our own and in Qwen3-VL's."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Literal

import numpy as np

from framework.scene.types import CLASSES, Boxes

EMPTY = "none"


class BoxTextCodec:
    """Boxes spelled as text, nearest first, at most `max_boxes`, numbers with `decimals` places.

    Form "ego", one line a box: `label x y z length width height yaw vx vy`, in metres, radians and m/s, ego frame; `none` for no boxes. Form "qwen", the
    backbone's own grounding: `[{"bbox_3d": [x, y, z, length, width, height, 0, 0, yaw], "label": "car"}]`, which knows no velocity (zero when
    read), also in the ego frame, as the prompt states. Unknown velocities are spelled zero. Decoded boxes are scored 1, 1/2, 1/3, ...
    in the order of the text: what is said first is surest.
    """

    def __init__(self, max_boxes: int, decimals: int = 1, form: Literal["ego", "qwen"] = "ego") -> None:
        if decimals < 1:
            raise ValueError(f"codecs.boxes.decimals: {decimals}; give at least 1")
        if max_boxes < 1:
            raise ValueError(f"codecs.boxes.max_boxes: {max_boxes}; give at least 1")
        self.max_boxes, self.decimals, self.form = max_boxes, decimals, form
        self._number_form = rf"-?[0-9]{{1,3}}\.[0-9]{{{decimals}}}"
        small = "|".join(rf"0\.0{{{i}}}[1-9][0-9]{{{decimals - 1 - i}}}" for i in range(decimals))
        self._size_form = rf"[1-9][0-9]?\.[0-9]{{{decimals}}}|{small}"
        number, size = self._number_form, self._size_form
        labels = "|".join(CLASSES)
        self._line = re.compile(rf"({labels})((?: {number}){{3}}(?: (?:{size})){{3}}(?: {number}){{3}})")

    @property
    def grammar(self) -> str:
        """See `BoxCodec`: labels and numbers of bounded length, so that a constrained answer always ends and always parses."""
        labels = " | ".join(f'"{label}"' for label in CLASSES)
        shared = f"label: {labels}\nNUMBER: /{self._number_form}/\nSIZE: /{self._size_form}/\n"
        more = self.max_boxes - 1
        if self.form == "ego":
            return f'start: "{EMPTY}" | box ("\\n" box){{0,{more}}}\nbox: label (" " NUMBER){{3}} (" " SIZE){{3}} (" " NUMBER){{3}}\n{shared}'
        box = 'box: "{\\"bbox_3d\\": [" NUMBER (", " NUMBER){2} (", " SIZE){3} ", 0, 0, " NUMBER "], \\"label\\": \\"" label "\\"}"\n'
        return f'start: "[]" | "[" box (", " box){{0,{more}}} "]"\n{box}{shared}'

    @property
    def instruction(self) -> str:
        """See `BoxCodec`."""
        frame = "ego frame (x forward, y left, z up), metres, radians"
        if self.form == "ego":
            return f"One line each: label x y z length width height yaw vx vy; {frame}, m/s; nearest first, or {EMPTY}."
        return f'JSON: [{{"bbox_3d": [x, y, z, length, width, height, roll, pitch, yaw], "label": ...}}]; {frame}; nearest first.'

    def encode(self, boxes: Boxes) -> str:
        """See `BoxCodec`."""
        nearest = np.argsort(np.hypot(boxes.values[:, 0], boxes.values[:, 1]), kind="stable")[: self.max_boxes]
        values = np.nan_to_num(boxes.values)
        values[:, 3:6] = np.maximum(values[:, 3:6], 10.0**-self.decimals)  # nothing rounds to a size of zero
        chosen = [(boxes.labels[i], [self._number(v) for v in values[i]]) for i in nearest]
        if self.form == "ego":
            return "\n".join(" ".join([label, *numbers]) for label, numbers in chosen) or EMPTY
        items = [
            f'{{"bbox_3d": [{", ".join([*numbers[:6], "0", "0", numbers[6]])}], "label": "{label}"}}' for label, numbers in chosen
        ]
        return f"[{', '.join(items)}]"

    def decode(self, text: str) -> Boxes | None:
        """See `BoxCodec`."""
        rows = self._ego_rows(text.strip()) if self.form == "ego" else _qwen_rows(text)
        if rows is None:
            return None
        values = np.array([row for _, row in rows], dtype=np.float64).reshape(-1, 9)
        if not np.isfinite(values).all() or (values[:, 3:6] <= 0).any():
            return None
        scores = 1.0 / np.arange(1, len(rows) + 1)
        return Boxes(values, tuple(label for label, _ in rows), scores=scores)

    def _number(self, value: float) -> str:
        text = f"{value:.{self.decimals}f}"
        return text.removeprefix("-") if float(text) == 0 else text

    def _ego_rows(self, text: str) -> list[tuple[str, list[float]]] | None:
        if text == EMPTY:
            return []
        lines = [self._line.fullmatch(line) for line in text.split("\n")]
        if any(line is None for line in lines):
            return None
        return [(line[1], [float(number) for number in line[2].split()]) for line in lines if line is not None]


def _qwen_rows(text: str) -> list[tuple[str, list[float]]] | None:
    try:
        items: Any = json.loads(text)
        return [(_known(item["label"]), _values(item["bbox_3d"])) for item in items]
    except (ValueError, KeyError, TypeError):
        return None


def _known(label: Any) -> str:
    if label not in CLASSES:
        raise ValueError(label)
    return str(label)


def _values(numbers: Any) -> list[float]:
    if len(numbers) != 9:
        raise ValueError(numbers)
    yaw = math.atan2(math.sin(numbers[8]), math.cos(numbers[8]))
    return [*(float(number) for number in numbers[:6]), yaw, 0.0, 0.0]


