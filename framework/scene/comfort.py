"""The quantities of a comfortable drive, and nuPlan's bounds for them. Works on numpy and torch."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace

from framework.scene.frames import wrap_angle

COMFORT_BOUNDS = {
    "longitudinal_acceleration": (-4.05, 2.40),
    "lateral_acceleration": (-4.89, 4.89),
    "jerk": (0.0, 8.37),
    "longitudinal_jerk": (-4.13, 4.13),
    "yaw_rate": (-0.95, 0.95),
    "yaw_acceleration": (-1.93, 1.93),
}
"""nuPlan's bounds of a comfortable drive, in m/s^2, m/s^3, rad/s and rad/s^2."""


def comfort_quantities(initial: Any, states: Any, rate_hz: float) -> dict[str, Any]:
    """The quantities of `COMFORT_BOUNDS`, by finite differences from the current state `initial` `(..., 4)` through
    `states` `(..., time, 4)`.

    One array per name of `COMFORT_BOUNDS`, `(..., time)` for accelerations and the yaw rate, `(..., time - 1)` for
    their changes. `jerk` is the length of the acceleration vector's change. Lateral acceleration is the mean speed of
    a step times its yaw rate.
    """
    xp = array_namespace(initial, states)
    path = xp.concat([initial[..., None, :], states], axis=-2)
    speed = path[..., 3]
    yaw_rate = wrap_angle(_change(path[..., 2])) * rate_hz
    longitudinal = _change(speed) * rate_hz
    lateral = (speed[..., 1:] + speed[..., :-1]) / 2 * yaw_rate
    longitudinal_jerk, lateral_jerk = _change(longitudinal) * rate_hz, _change(lateral) * rate_hz
    return {
        "longitudinal_acceleration": longitudinal,
        "lateral_acceleration": lateral,
        "jerk": xp.hypot(longitudinal_jerk, lateral_jerk),
        "longitudinal_jerk": longitudinal_jerk,
        "yaw_rate": yaw_rate,
        "yaw_acceleration": _change(yaw_rate) * rate_hz,
    }


def _change(values: Any) -> Any:
    return values[..., 1:] - values[..., :-1]
