"""An episode from above as a drawing that moves: the egos that drove it, and the road users around them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from framework.scene.kinematics import EGO
from framework.scene.picture import View, birds_eye, view_of
from framework.scene.types import FloatArray, Scene

OTHER = "#94a3b8"
HOLD_S = 1.0
"""Seconds that the end stands before the drawing begins again."""


@dataclass(frozen=True, slots=True)
class RoadUsers:
    """The road users of an episode over `t` moments."""

    states: FloatArray
    """x, y (m) and heading (rad) of their centres, in the ego's frame at the start, `(n, t, 3)`."""
    sizes: FloatArray
    """Length and width (m), `(n, 2)`."""
    present: npt.NDArray[np.bool_]
    """When they are there, `(n, t)`."""


def animated_episode(
    scene: Scene, drives: Mapping[str, tuple[str, FloatArray]], others: RoadUsers, rate_hz: float
) -> str:
    """The episode as an SVG element that moves in real time, without a script, and begins again at its end.

    `drives` maps a name to its colour and to the states of the ego's rear axle `(t, 3+)`, the first at the start. A
    drive that is shorter than the others stands at its end. `others` have as many moments as the longest, or more.
    """
    view = view_of([states for _, states in drives.values()])
    paths = {name: (colour, states[1:]) for name, (colour, states) in drives.items()}
    clock = _Clock(max(len(states) for _, states in drives.values()), rate_hz)
    moving = list[str]()
    for states, size, present in zip(others.states, others.sizes, others.present, strict=True):
        states, present = states[: clock.moments], present[: clock.moments]
        if present.any():
            hidden = "" if present.all() else clock.animate("visibility", np.where(present, "visible", "hidden"))
            moving.append(_mover(view, clock, states, _rectangle(view, size, 0.0, OTHER), hidden))
    body = np.array([EGO.length, EGO.width])
    for name, (colour, states) in drives.items():
        states = np.concatenate([states, np.repeat(states[-1:], clock.moments - len(states), axis=0)])
        moving.append(_mover(view, clock, states, _rectangle(view, body, EGO.centre, colour, name)))
    return birds_eye(scene, paths, view=view).replace("</svg>", "".join([*moving, "</svg>"]))


@dataclass(frozen=True, slots=True)
class _Clock:
    """The moments of an episode, and how many there are a second."""

    moments: int
    rate_hz: float

    def animate(self, attribute: str, values: Iterable[object]) -> str:
        """An `attribute` that has one of the `values` at each moment, and jumps between them."""
        return f'<animate attributeName="{attribute}" calcMode="discrete" {self._times(values)}/>'

    def move(self, kind: str, values: Iterable[object]) -> str:
        """A `kind` of transform, translate or rotate, that glides through the `values`."""
        return f'<animateTransform attributeName="transform" type="{kind}" {self._times(values)}/>'

    def _times(self, values: Iterable[object]) -> str:
        listed = [*map(str, values)]
        seconds = (self.moments - 1) / self.rate_hz + HOLD_S
        times = [f"{moment / self.rate_hz / seconds:.4f}" for moment in range(self.moments)]
        return (
            f'values="{";".join([*listed, listed[-1]])}" keyTimes="{";".join([*times, "1"])}" dur="{seconds:g}s" '
            'repeatCount="indefinite"'
        )


def _mover(view: View, clock: _Clock, states: FloatArray, shape: str, extra: str = "") -> str:
    """A `shape` around the origin, heading up, that moves along `states` `(t, 3+)`."""
    places = [f"{x:.1f},{y:.1f}" for x, y in view.pixels(states)]
    turns = [f"{turn:.1f}" for turn in -np.degrees(np.unwrap(states[:, 2]))]
    return f"<g>{clock.move('translate', places)}<g>{clock.move('rotate', turns)}{shape}{extra}</g></g>"


def _rectangle(view: View, size: FloatArray, centre: float, colour: str, name: str = "") -> str:
    """A body of `size` (length, width in m), heading up, whose centre is `centre` (m) ahead of the origin."""
    length, width = size * view.scale
    top = -length / 2 - centre * view.scale
    title = f"<title>{escape(name)}</title>" if name else ""
    place = f'x="{-width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" height="{length:.1f}" rx="2"'
    return f'<rect {place} fill="{colour}" fill-opacity="0.85">{title}</rect>'
