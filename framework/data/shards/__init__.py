"""MDS shards: records, writing, storage, the local cache."""
