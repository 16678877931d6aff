"""How trajectories and boxes are spelled as text: protocols that the data room renders with and the model room
implements.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from framework.scene.types import Boxes, Scene, Trajectory


@runtime_checkable
class ActionCodec(Protocol):
    """A trajectory as text and back."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """Special tokens that the tokenizer must know; empty when the form is plain text."""
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
        """The expert's future of `scene`. Raises `SceneError` when it has none or not at this codec's rate and
        horizon.
        """
        ...

    def decode(self, text: str, scene: Scene) -> Trajectory | None:
        """The trajectory that `text` spells, starting at `scene`'s current speed; None when it does not parse."""
        ...


@runtime_checkable
class BoxCodec(Protocol):
    """Boxes as text and back."""

    @property
    def grammar(self) -> str:
        """A Lark grammar (llguidance's dialect) that accepts exactly the answers that `decode` parses."""
        ...

    @property
    def instruction(self) -> str:
        """One sentence for the prompt that states the form, its units and its frame."""
        ...

    def encode(self, boxes: Boxes) -> str:
        """Boxes in the ego frame, nearest first, as text."""
        ...

    def decode(self, text: str) -> Boxes | None:
        """The boxes that `text` spells (an empty answer is no boxes); None when it does not parse."""
        ...
