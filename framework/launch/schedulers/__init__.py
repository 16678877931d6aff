"""Schedulers behind one protocol: Slurm, Kubernetes, local processes."""
