"""Sensor features in place of their placeholders: the one step that a backbone's own code lacks."""

from __future__ import annotations

from torch import Tensor


def insert_features(embeddings: Tensor, ids: Tensor, token: int, name: str, features: Tensor, keep: Tensor) -> Tensor:
    """Input embeddings `(b, t, d)` with a sensor's features at its placeholders, in order.

    Args:
        embeddings: Input embeddings, `(b, t, d)`.
        ids: Token ids, `(b, t)`.
        token: The sensor's placeholder.
        name: The sensor's name, for the message.
        features: The encoder's features of the `m` samples that have the sensor, `(m, tokens, d)`.
        keep: Which of them are kept, `(m, tokens)` bool.

    Raises `ValueError` where there are not as many placeholders as features.
    """
    kept, places = features[keep], ids == token
    expected = int(places.sum())
    if expected != len(kept):
        raise ValueError(
            f"sensor {name}: its encoder gave {len(kept)} tokens for {len(features)} samples, the conversations hold "
            f"{expected} of its placeholders: give a prompt as many as the encoder makes tokens (in a recipe, the same "
            "number in data.sensors and model.encoders)"
        )
    return embeddings.masked_scatter(places[..., None], kept.to(embeddings.dtype))
