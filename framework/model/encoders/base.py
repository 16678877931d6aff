"""The protocol of sensor encoders: rows of a sensor in, embeddings of the language model's width out."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Encoder(Protocol):
    """A `torch.nn.Module` that a recipe names under `model.encoders.<name>` with `_partial_: true`; it is called with
    `hidden`.

    One call encodes the samples of a micro-batch that have the sensor, `m` of them. Rows are in the ego frame, SI
    units, padded; `channels` is their width.
    """

    channels: int

    def __call__(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(m, tokens, hidden)` and which of them are kept `(m, tokens)` bool.

        `values` is `(m, rows, channels)` float32 whatever the weights' precision (bfloat16 would round 50 m to a
        quarter of a metre), `mask` `(m, rows)` bool, True where a row is real. The kept features replace the sensor's
        placeholders in the order of samples, then of tokens. A sample without a single real row must give finite
        features.
        """
        ...


class Projector(nn.Module):
    """Features of an encoder to the language model: a two-layer perceptron and a LayerNorm whose gain starts at
    `scale`.

    The backbone's word embeddings have a standard deviation of about 0.02; tokens of unit scale would drown them.
    """

    def __init__(self, features: int, hidden: int, scale: float = 0.02) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.norm = nn.LayerNorm(hidden)
        self.scale = scale
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Default initialisation, the gain at `scale`."""
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        nn.init.constant_(self.norm.weight, self.scale)
        nn.init.zeros_(self.norm.bias)

    def forward(self, features: Tensor) -> Tensor:
        """`(..., features)` in any precision to `(..., hidden)` in the weights'."""
        return self.norm(self.layers(features.to(self.norm.weight.dtype)))
