"""Data: records, shards, mixtures, chat rendering and the loader whose cursor counts trained samples."""
