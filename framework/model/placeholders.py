"""The special tokens that hold a sensor's place in the sequence, one per output token of its encoder."""

from __future__ import annotations

PLACEHOLDERS = {"lidar": "<|lidar|>", "radar": "<|radar|>", "boxes": "<|box|>", "ego": "<|ego|>"}


def placeholder(encoder: str) -> str:
    """The placeholder of the encoder named `encoder`; a plugin's encoder is named by its own token, `<|name|>`."""
    return PLACEHOLDERS.get(encoder, f"<|{encoder}|>")
