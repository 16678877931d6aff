"""Codecs between trajectories or boxes and text, and the grammars of constrained decoding."""
