"""Agents that benchmarks run in environments of their own: files to copy, which ask `serve` for plans."""
