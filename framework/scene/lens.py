"""Projections of cameras with a lens: pixels of points and rays of pixels.

A camera-frame ray at the angle theta to the optical axis and phi around it meets the plane at depth 1 at the radius
tan(theta). A lens moves it to another radius, and `Camera.intrinsic` takes the result to pixels. With r = tan(theta)

    pinhole        tan(theta)
    brown_conrady  r (1 + k1 r^2 + k2 r^4 + k3 r^6) / (1 + k4 r^2 + k5 r^4 + k6 r^6), and the tangential p1, p2 and the
                   thin prism's s1 to s4, as OpenCV's `calib3d` (Brown 1966, Conrady 1919)
    fisheye        theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8), as OpenCV's `fisheye` (Kannala and
                   Brandt 2006, IEEE TPAMI 28)
    f_theta        c1 theta + c2 theta^2 + c3 theta^3 + ...
    mei            m (1 + k1 m^2 + k2 m^4) with m = sin(theta) / (cos(theta) + xi), the unified model of mirrors (Mei
                   and Rives 2007, ICRA) with its radial distortion

An f-theta calibration in pixels, radius = sum of j_i theta^i, is a lens of c_i = j_i / f with the focal length f in the
intrinsic, for any f (j_1 by custom).

A polynomial turns back beyond the angles that it was fitted to, and would show what is far outside the view inside the
image. A lens therefore ends at its `widest` angle; what lies beyond projects to NaN. That is exact for radial
distortion, which dominates.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.polynomial import Polynomial

from framework.scene.frames import apply, invert
from framework.scene.types import LENSES, Camera, FloatArray, Lens, SceneError

COEFFICIENTS = {"brown_conrady": (4, 5, 8, 12), "fisheye": (4,), "f_theta": tuple(range(1, 13)), "mei": (3,)}
"""Numbers of coefficients that a model may have."""
HALVINGS = 60
"""Of an interval of angles, after which its ends are neighbouring numbers."""
NEWTON_STEPS = 8
"""With which tangential distortion, small by nature, is removed to rounding."""


def project(camera: Camera, points: FloatArray) -> FloatArray:
    """Returns the pixels `(n, 2)` of ego-frame points `(n, 3)`, within the image or not; NaN where the camera can't
    see: behind a pinhole, or beyond the lens's `widest` angle.
    """
    return plane_pixels(distort(camera.lens, apply(invert(camera.extrinsic), points)), camera.intrinsic)


def rays(camera: Camera, pixels: FloatArray) -> FloatArray:
    """Returns unit directions `(n, 3)` in the ego frame, from the camera's position, of what is seen at pixels
    `(n, 2)`; NaN where the lens shows nothing.
    """
    homogeneous = np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1)
    plane = np.linalg.solve(camera.intrinsic, homogeneous.T).T[:, :2]
    directions: FloatArray = undistort(camera.lens, plane) @ camera.extrinsic[:3, :3].T
    return directions


def plane_pixels(plane: FloatArray, intrinsic: FloatArray) -> FloatArray:
    """Returns the pixels `(n, 2)` of places `(n, 2)` on the plane at depth 1."""
    pixels: FloatArray = plane @ intrinsic[:2, :2].T + intrinsic[:2, 2]
    return pixels


def distort(lens: Lens | None, points: FloatArray) -> FloatArray:
    """Returns where camera-frame points `(n, 3)` come to lie `(n, 2)` on the plane at depth 1; NaN where they can't be
    seen.
    """
    points = np.asarray(points, dtype=np.float64)
    aside = np.hypot(points[:, 0], points[:, 1])
    angle = np.arctan2(aside, points[:, 2])
    seen = angle < widest(lens)
    angle = np.where(seen, angle, 0.0)
    if lens is None or lens.model == "brown_conrady":
        depth = np.where(seen, points[:, 2], 1.0)
        flat = points[:, :2] / depth[:, None]
        plane = flat if lens is None else _brown_conrady(lens.coefficients, flat)[0]
    else:
        # On the axis the direction around it means nothing, and the radius is zero.
        plane = _radius(lens, angle)[:, None] * points[:, :2] / np.where(aside > 0.0, aside, 1.0)[:, None]
    return np.where(seen[:, None], plane, np.nan)


def undistort(lens: Lens | None, plane: FloatArray) -> FloatArray:
    """Returns the unit directions `(n, 3)`, in the camera's frame, of places `(n, 2)` on the distorted plane; NaN where
    the lens shows nothing. The inverse of `distort` to rounding.
    """
    plane = np.asarray(plane, dtype=np.float64)
    aside = np.hypot(plane[:, 0], plane[:, 1])
    if lens is None:
        angle = np.arctan(aside)
    else:
        angle = _angle(lens, aside)
    if lens is not None and lens.model == "brown_conrady":
        around = plane / np.where(aside > 0.0, aside, 1.0)[:, None]
        flat = _without_tangential(lens, plane, around * np.tan(angle)[:, None])
        directions = np.concatenate([flat, np.ones((len(flat), 1))], axis=1)
    else:
        around = plane / np.where(aside > 0.0, aside, 1.0)[:, None]
        directions = np.concatenate([np.sin(angle)[:, None] * around, np.cos(angle)[:, None]], axis=1)
    unit: FloatArray = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return unit


def widest(lens: Lens | None) -> float:
    """Returns the angle (rad) to the optical axis up to which a lens is one to one: a right angle for a pinhole, else
    where its radius first stops growing, at most pi.
    """
    return np.pi / 2 if lens is None else _widest(lens.model, tuple(np.asarray(lens.coefficients, float).tolist()))


def check_lens(lens: Lens) -> str | None:
    """Returns what is wrong with a lens, with the remedy; None when it is sound."""
    if lens.model not in LENSES:
        return f"model {lens.model!r} is unknown; use one of {', '.join(LENSES)}, or no lens for a pinhole"
    counts, shape = COEFFICIENTS[lens.model], np.shape(lens.coefficients)
    if len(shape) != 1 or shape[0] not in counts:
        allowed = f"{counts[0]} to {counts[-1]}" if len(counts) > 5 else " or ".join(map(str, counts))
        return f"coefficients of shape {shape}; {lens.model} has {allowed}"
    if not np.isfinite(lens.coefficients).all():
        return "a coefficient is NaN or infinite; check the calibration"
    if lens.model == "mei" and lens.coefficients[0] < 0.0:
        return f"xi is {lens.coefficients[0]}, negative; check the order of the coefficients"
    if lens.model == "f_theta" and lens.coefficients[0] <= 0.0:
        return f"the factor of theta is {lens.coefficients[0]}, not positive; check the order of the coefficients"
    return None


def lens_of(model: str, coefficients: FloatArray) -> Lens:
    """Returns a lens of `LENSES`. Raises `SceneError` as `check_lens` says."""
    lens = Lens(model, np.asarray(coefficients, dtype=np.float64))
    problem = check_lens(lens)
    if problem:
        raise SceneError(f"lens: {problem}")
    return lens


@functools.lru_cache(maxsize=256)
def _widest(model: str, coefficients: tuple[float, ...]) -> float:
    """See `widest`; kept, since a rig's lenses are the same in every scene."""
    if model == "brown_conrady":
        radial, under = _radial(np.array(coefficients))
        # In s = r^2 the radius r N(s) / D(s) grows where N D + 2 s (N' D - N D') is positive, up to D's first zero.
        s = Polynomial([0.0, 1.0])
        slope = radial * under + 2 * s * (radial.deriv() * under - radial * under.deriv())
        ends = [np.sqrt(root) for root in (_first_root(slope), _first_root(under)) if root is not None]
        return float(np.arctan(min(ends))) if ends else np.pi / 2
    if model == "mei":
        return _widest_mirror(*coefficients)
    end = _first_root(_theta_polynomial(model, np.array(coefficients)).deriv())
    return np.pi if end is None else min(np.pi, end)


def _widest_mirror(xi: float, k1: float, k2: float) -> float:
    """Returns where the radius of `mei` stops growing: at the mirror's own end, or where its distortion turns back."""
    end = float(np.arccos(-1.0 / xi)) if xi > 1.0 else float(np.arccos(-xi))
    turn = _first_root(Polynomial([0.0, 1.0, 0.0, k1, 0.0, k2]).deriv())
    if turn is None or turn * xi >= np.hypot(1.0, turn):
        return end
    return min(end, float(np.arctan(turn) + np.arcsin(turn * xi / np.hypot(1.0, turn))))


def _first_root(polynomial: Polynomial) -> float | None:
    """Returns the smallest positive real root."""
    roots = polynomial.trim().roots()
    real = roots[np.abs(np.imag(roots)) < 1e-12].real
    positive = real[real > 0.0]
    return float(positive.min()) if len(positive) else None


def _radius(lens: Lens, angle: FloatArray) -> FloatArray:
    """Returns the radius `(n,)` on the plane at angles `(n,)` within the lens's view, without tangential distortion."""
    coefficients = np.asarray(lens.coefficients, dtype=np.float64)
    if lens.model == "brown_conrady":
        radial, under = _radial(coefficients)
        flat = np.tan(angle)
        distorted: FloatArray = flat * radial(flat**2) / under(flat**2)
        return distorted
    if lens.model == "mei":
        xi, k1, k2 = coefficients
        flat = np.sin(angle) / (np.cos(angle) + xi)
        mirrored: FloatArray = flat * (1.0 + k1 * flat**2 + k2 * flat**4)
        return mirrored
    radius: FloatArray = _theta_polynomial(lens.model, coefficients)(angle)
    return radius


def _angle(lens: Lens, radius: FloatArray) -> FloatArray:
    """Returns the angles `(n,)` of radii `(n,)`, the inverse of `_radius` by bisection, which can't miss: the radius
    grows up to the widest angle. NaN beyond it.
    """
    end = np.nextafter(widest(lens), 0.0)
    low, high = np.zeros_like(radius), np.full_like(radius, end)
    shown = radius <= _radius(lens, high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        is_short = _radius(lens, middle) < radius
        low, high = np.where(is_short, middle, low), np.where(is_short, high, middle)
    return np.where(shown, (low + high) / 2, np.nan)


def _theta_polynomial(model: str, coefficients: FloatArray) -> Polynomial:
    if model == "f_theta":
        return Polynomial([0.0, *coefficients])
    k1, k2, k3, k4 = coefficients
    return Polynomial([0.0, 1.0, 0.0, k1, 0.0, k2, 0.0, k3, 0.0, k4])


def _radial(coefficients: FloatArray) -> tuple[Polynomial, Polynomial]:
    """Returns numerator and denominator of the radial factor, in r^2."""
    k1, k2, _, _, k3, k4, k5, k6, *_ = _filled(coefficients)
    return Polynomial([1.0, k1, k2, k3]), Polynomial([1.0, k4, k5, k6])


def _filled(coefficients: FloatArray) -> list[float]:
    return [*np.asarray(coefficients, dtype=np.float64).tolist(), *[0.0] * (12 - len(coefficients))]


def _brown_conrady(coefficients: FloatArray, flat: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Returns the distorted places `(n, 2)` of undistorted `flat` `(n, 2)`, and their derivatives `(n, 2, 2)`."""
    radial, under = _radial(coefficients)
    _, _, p1, p2, *_, s1, s2, s3, s4 = _filled(coefficients)
    x, y = flat.T
    s = x * x + y * y
    factor = radial(s) / under(s)
    slope = (radial.deriv()(s) - factor * under.deriv()(s)) / under(s)
    distorted = [
        x * factor + 2 * p1 * x * y + p2 * (s + 2 * x * x) + s1 * s + s2 * s * s,
        y * factor + p1 * (s + 2 * y * y) + 2 * p2 * x * y + s3 * s + s4 * s * s,
    ]
    across, down = s1 + 2 * s2 * s, s3 + 2 * s4 * s
    mixed = 2 * x * y * slope + 2 * p1 * x + 2 * p2 * y
    derivatives = [
        [factor + 2 * x * x * slope + 2 * p1 * y + 6 * p2 * x + 2 * x * across, mixed + 2 * y * across],
        [mixed + 2 * x * down, factor + 2 * y * y * slope + 6 * p1 * y + 2 * p2 * x + 2 * y * down],
    ]
    return np.stack(distorted, axis=1), np.moveaxis(np.array(derivatives), -1, 0)


def _without_tangential(lens: Lens, plane: FloatArray, start: FloatArray) -> FloatArray:
    """Returns the undistorted places `(n, 2)` of distorted ones by Newton's method from `start`, which are those of the
    radial distortion alone.
    """
    flat = start
    for _ in range(NEWTON_STEPS):
        distorted, derivatives = _brown_conrady(lens.coefficients, flat)
        known = np.isfinite(derivatives).all(axis=(1, 2))
        step = np.zeros_like(flat)
        step[known] = np.linalg.solve(derivatives[known], (plane - distorted)[known][..., None])[..., 0]
        flat = flat + step
    return flat
