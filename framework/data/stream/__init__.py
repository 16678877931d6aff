"""The order of samples, mixtures of streams, and the loader whose cursor counts what was trained."""
