"""Sensor encoders: each maps the rows of a sensor to embeddings of the language model."""
