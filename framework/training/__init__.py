"""The top layer: combines the other packages into Lightning modules, a curriculum and tasks."""
