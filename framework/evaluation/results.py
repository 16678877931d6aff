"""The form of results, and the names in it. Reading them takes no torch."""

from __future__ import annotations

MODEL = "model"
"""The method that is evaluated."""
PERCEPTION = "perception"
"""The baseline that copies the perception stack's boxes."""
SIMULATION = "simulation"
"""The section of plans carried out in the simulator."""
LOSS = "loss"
"""The section of the loss on expected answers."""
DRIVING = ("drive", "reason")
"""Tasks whose answers are trajectories: at once, and after thinking."""
COUNTS = ("scenes", "questions")
"""The metrics that count samples."""
Sliced = dict[str, dict[str, float]]
"""{metric: {slice: value}}; the slice `ALL` holds all scenes, the others are scenario kinds."""
Results = dict[str, dict[str, Sliced]]
"""{section: {method: {metric: {slice: value}}}}. Sections are the evaluated tasks (drive, reason, detect, answer,
caption), `SIMULATION` and `LOSS`; the methods are `MODEL` and baselines on the same scenes.
"""
