"""Launching: submits runs to a cluster, supervises them there and has their checkpoints evaluated."""
