"""Protocols of trajectories and boxes as text. `data` renders with them; `model` implements them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from framework.scene.types import Boxes, Scene, Trajectory


@runtime_checkable
class ActionCodec(Protocol):
    """A trajectory as text and back."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """Special tokens that the tokenizer must have; empty where the form is plain text."""
        ...

    @property
    def grammar(self) -> str:
        """A Lark grammar (llguidance's dialect) that accepts exactly the answers that `decode` parses."""
        ...

    @property
    def instruction(self) -> str:
        """One sentence for the prompt that states the form, its units and its frame."""
        ...

    def encode(self, scene: Scene) -> str:
        """The text of the expert's future in `scene`. Raises `SceneError` where it has none, or one at another rate or
        horizon than this codec's.
        """
        ...

    def decode(self, text: str, scene: Scene) -> Trajectory | None:
        """The trajectory of `text`, from the current speed in `scene`; None where it does not parse."""
        ...


@runtime_checkable
class BoxCodec(Protocol):
    """Boxes as text and back.

    `inputs` are the perception stack's boxes, of which the prompt may show the nearest: an answer can refer to them.
    """

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields of a scene, other than `boxes`, that its answers cannot do without."""
        ...

    @property
    def tokens(self) -> tuple[str, ...]:
        """Special tokens that the tokenizer must have; empty where the form is plain text."""
        ...

    @property
    def grammar(self) -> str:
        """A Lark grammar (llguidance's dialect) that accepts exactly the answers that `decode` parses."""
        ...

    @property
    def instruction(self) -> str:
        """One sentence for the prompt that states the form, its units and its frame."""
        ...

    def encode(self, boxes: Boxes, inputs: Boxes | None = None) -> str:
        """The text of boxes in the ego frame, nearest first."""
        ...

    def decode(self, text: str, inputs: Boxes | None = None, logprobs: Sequence[float] | None = None) -> Boxes | None:
        """The boxes of `text` with scores, none for an empty answer; None where it does not parse.

        Scores follow from `logprobs`, the log-probability of each token of the answer, where the codec can read them.
        """
        ...
