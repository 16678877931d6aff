"""The trial: every open figure of one GPU, in one command of at most six minutes (`python -m tools.gpu_trial`)."""
