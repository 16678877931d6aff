"""Run folders: layout, files, phases, heartbeat, evaluations. No torch at import."""
