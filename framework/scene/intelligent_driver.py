"""The intelligent driver model of car following, for floats, numpy and torch alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class IntelligentDriver:
    """The intelligent driver model (Treiber, Hennecke and Helbing 2000, equations 2 and 3 with exponent 4).

    A driver of speed v accelerates by a (1 - (v / v0)^4 - (s* / s)^2), with s* = s0 + max(0, v T + v dv / (2 sqrt(a
    b))), where v0 is the desired speed, s the gap to the lead and dv the closing speed (own less the lead's). All
    arguments of the methods are floats or arrays that broadcast.
    """

    acceleration: float = 1.6
    """a (m/s^2), from standstill on an empty road."""
    deceleration: float = 2.0
    """b (m/s^2), comfortable."""
    headway_s: float = 1.3
    """T (s), the time gap kept to a lead."""
    standstill_gap: float = 2.5
    """s0 (m), kept to a standing lead."""

    def free_term(self, speed: Any, desired: Any) -> Any:
        """1 - (v / v0)^4: the share of the acceleration that an empty road leaves at `speed`."""
        return 1.0 - (speed / desired) ** 4

    def interaction_term(self, speed: Any, gap: Any, closing: Any) -> Any:
        """(s* / s)^2: the share that a lead takes away, `gap` > 0 metres ahead (infinite without a lead)."""
        dynamic = speed * self.headway_s + speed * closing / (2.0 * (self.acceleration * self.deceleration) ** 0.5)
        return ((self.standstill_gap + (dynamic + abs(dynamic)) / 2) / gap) ** 2  # max(0, dynamic), of any type
