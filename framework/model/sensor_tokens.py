"""Sensor features in place of their placeholders: the one step that a backbone's own code lacks."""

from __future__ import annotations

import torch
from torch import Tensor


def insert_features(
    embeddings: Tensor,
    ids: Tensor,
    token: int,
    name: str,
    features: Tensor,
    keep: Tensor | None,
    places: Tensor | None = None,
) -> Tensor:
    """Input embeddings `(b, t, d)` with a sensor's features at its placeholders, in order.

    Args:
        embeddings: Input embeddings, `(b, t, d)`.
        ids: Token ids, `(b, t)`.
        token: The sensor's placeholder.
        name: The sensor's name, for the message.
        features: The encoder's features of the `m` samples that have the sensor, `(m, tokens, d)`.
        keep: Which of them are kept, `(m, tokens)` bool, or their flat indices `(n,)`. None: all.
        places: Flat indices of the placeholders, `(n,)`. None: they are looked up in `ids`.

    Raises `ValueError` where there are not as many placeholders as features.
    """
    kept = features.flatten(0, 1)
    if keep is not None:
        kept = features[keep] if keep.dtype == torch.bool else kept.index_select(0, keep)
    if places is None:
        places = (ids.flatten() == token).nonzero()[:, 0]
    if len(places) != len(kept):
        raise ValueError(
            f"sensor {name}: its encoder gave {len(kept)} tokens for {len(features)} samples, the conversations hold "
            f"{len(places)} of its placeholders: give a prompt as many as the encoder makes tokens (in a recipe, the "
            "same number in data.sensors and model.encoders)"
        )
    return embeddings.flatten(0, 1).index_copy(0, places, kept.to(embeddings.dtype)).view(embeddings.shape)
