"""nuScenes' radar files: PCD with a text header and 43-byte rows.

Layout and default filters: `RadarPointCloud` of nuscenes-devkit 1.2.0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from framework.scene.types import FloatArray, SceneError

TYPES = {("F", "4"): "<f4", ("F", "8"): "<f8", ("I", "1"): "<i1", ("I", "2"): "<i2", ("I", "4"): "<i4",
         ("U", "1"): "<u1", ("U", "2"): "<u2", ("U", "4"): "<u4"}  # fmt: skip
"""numpy's name of a field's type and size."""
FIELDS = ("x", "y", "z", "rcs", "vx_comp", "vy_comp", "invalid_state", "dyn_prop", "ambig_state")
VALID_STATE, UNAMBIGUOUS = 0, 3
"""Values of `invalid_state` and `ambig_state` of returns that are kept."""
DYNAMIC_PROPERTIES = range(7)
"""Values of `dyn_prop` of returns that are kept: all but those that have stopped."""
HEADER_LINES = 32
"""A header has fewer lines."""


def read_radar(path: Path) -> tuple[FloatArray, dict[str, int]]:
    """Returns the returns `(n, 5)` float64 of one radar in its frame: x, y, z (m), radial velocity over ground (m/s,
    positive when receding), radar cross-section (dB m^2); and how many are left out, by reason.

    Raises `SceneError` for a file that is laid out differently or truncated.
    """
    rows = _rows(path)
    if len(rows) == 1 and np.isnan(rows["x"][0]):  # how a radar without a return is written
        rows = rows[:0]
    finite = np.all([np.isfinite(rows[name]) for name in FIELDS[:6]], axis=0)
    sound = (
        (rows["invalid_state"] == VALID_STATE)
        & (rows["ambig_state"] == UNAMBIGUOUS)
        & np.isin(rows["dyn_prop"], DYNAMIC_PROPERTIES)
    )
    counts = {
        "radar return that is not finite": int((~finite).sum()),
        "radar return that is invalid, ambiguous or of an object that stopped": int((finite & ~sound).sum()),
    }
    x, y, z, rcs, vx, vy = (rows[finite & sound][name].astype(np.float64) for name in FIELDS[:6])
    reach = np.maximum(np.hypot(x, y), 1e-9)
    return np.stack([x, y, z, (x * vx + y * vy) / reach, rcs], axis=1), counts


def _rows(path: Path) -> np.ndarray:
    """Returns the rows of a file as a structured array, see `FIELDS`."""
    header: dict[str, list[str]] = {}
    with path.open("rb") as file:
        for _ in range(HEADER_LINES):
            name, *values = file.readline(4096).decode("ascii", "replace").split() or [""]
            header[name] = values
            if name == "DATA":
                break
        data = file.read()
    try:
        kinds = [TYPES[each] for each in zip(header["TYPE"], header["SIZE"], strict=True)]
        layout = np.dtype(list(zip(header["FIELDS"], kinds, strict=True)))
        count, form = int(header["POINTS"][0]), header["DATA"]
    except (KeyError, IndexError, ValueError) as error:
        raise SceneError(f"{path}: header: {error!r}: no PCD file of a radar; fetch it again") from error
    missing = [name for name in FIELDS if name not in (layout.names or ())]
    if missing or form != ["binary"]:
        wrong = f"FIELDS: no {', '.join(missing)}" if missing else f"DATA: {' '.join(form)}, not binary"
        raise SceneError(f"{path}: {wrong}; fetch it again")
    if len(data) < count * layout.itemsize:
        raise SceneError(
            f"{path}: POINTS: {count} rows of {layout.itemsize} bytes, but the file holds {len(data)} bytes: it is "
            "truncated; fetch it again"
        )
    return np.frombuffer(data, layout, count)
