"""Writes datasets as shards, in parts that processes, Ray or Slurm write."""
