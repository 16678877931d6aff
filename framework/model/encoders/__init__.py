"""Sensor encoders: each turns a sensor's rows into tokens of the language model."""
