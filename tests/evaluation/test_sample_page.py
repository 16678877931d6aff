"""The page of samples: its text is the tokens', and what is learned is marked."""

from __future__ import annotations

from typing import Any

from framework.evaluation.sample_page import RUN, Span, spans
from framework.scene.batch import IGNORE_INDEX


class Words:
    """A tokenizer whose tokens are words."""

    names = ("<pad>", "stop", "or", "go")

    def decode(self, ids: list[int], **_: Any) -> str:
        """Joins the words."""
        return " ".join(self.names[token] for token in ids)


def test_tokens_are_divided_where_learning_begins_and_placeholders_are_counted() -> None:
    ids = [0] * RUN + [1, 2, 3, 3, 1]
    labels = [IGNORE_INDEX] * (RUN + 3) + [3, 1]
    assert spans(ids, labels, Words()) == [Span(f"<pad> × {RUN} stop or go", False), Span("go stop", True)]


def test_a_sample_without_tokens_has_no_span() -> None:
    assert spans([], [], Words()) == []
