"""Data: records, shards, mixtures, chat rendering and the loader whose cursor counts what was trained."""
