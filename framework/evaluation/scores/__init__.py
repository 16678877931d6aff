"""Scores of the field's benchmarks, as pure functions of numpy arrays, checked against the benchmarks' own code."""
