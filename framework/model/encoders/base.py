"""The protocol of sensor encoders, and the projector that they share."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Encoder(Protocol):
    """A `torch.nn.Module` that maps the rows of a sensor to embeddings of the language model.

    A recipe names it under `model.encoders.<name>` with `_partial_: true`; the model calls it with `hidden`, the
    embeddings' width. One call encodes the `m` samples of a micro-batch that have the sensor.
    """

    channels: int
    """Width of a row."""

    def __call__(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encode rows to features `(m, tokens, hidden)` and a mask of those to keep, `(m, tokens)` bool: `mask` itself
        where each row gives a token, None to keep all. Any other mask has to be read from the device.

        The kept features replace the sensor's placeholders, in the order of samples, then of tokens. A sample without
        real rows must give finite features.

        Args:
            values: Padded rows in the ego frame and SI units, `(m, rows, channels)`; float32 whatever the weights'
                precision, because bfloat16 would round 50 m to a quarter of a metre.
            mask: Which rows are real, `(m, rows)` bool.
        """
        ...


class Projector(nn.Module):
    """Projects an encoder's features to the language model's width: a two-layer MLP and a LayerNorm.

    Args:
        features: Width of the encoder's features.
        hidden: Width of the language model's embeddings.
        scale: Initial gain of the LayerNorm. The default is near the standard deviation of the backbone's token
            embeddings, which features of unit scale would drown.
    """

    def __init__(self, features: int, hidden: int, scale: float = 0.02) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.norm = nn.LayerNorm(hidden)
        self.scale = scale
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as torch does, but the gain with `scale`."""
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        nn.init.constant_(self.norm.weight, self.scale)
        nn.init.zeros_(self.norm.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Map `(..., features)` of any precision to `(..., hidden)` in the precision of the weights."""
        return self.norm(self.layers(features.to(self.norm.weight.dtype)))
