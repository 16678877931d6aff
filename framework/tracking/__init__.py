"""Observability of a run: heartbeat, metrics, loggers, profiles and alerts."""
