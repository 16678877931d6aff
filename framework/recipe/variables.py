"""What a recipe's interpolations call: the environment variables they read, and resolvers that are not allowed.

A recipe may read a variable by a name that is written out (`${oc.env:NAME}`), and other keys (`${a.b}`). Other
resolvers could make components out of text, or read a variable whose name nobody can see in the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from omegaconf.errors import GrammarParseError
from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser as Grammar
from omegaconf.grammar_parser import parse

from framework.recipe.layers import leaves
from framework.recipe.problem import Key

ENVIRONMENT = "oc.env"
"""The one resolver that a recipe may call."""
_NAME = re.compile(r"[A-Za-z_]\w*")
_KEY = re.compile(r"\$\{\.*[A-Za-z_]\w*(\.\w+)*\}", re.ASCII)
"""Another key and nothing else, which calls nothing: most interpolations, and parsing each takes half a millisecond."""


def variables_read(raw: Any) -> Iterator[tuple[Key, str]]:
    """Each key of the tree `raw` that reads a variable, and the variable's name."""
    for key, text in leaves(raw):
        for resolver, name in _calls(text):
            if resolver == ENVIRONMENT and name is not None:
                yield key, name


def refused_calls(raw: Any) -> Iterator[tuple[Key, str]]:
    """Each key of the tree `raw` whose interpolation calls what it may not, and why, as the end of a sentence."""
    for key, text in leaves(raw):
        for resolver, name in _calls(text):
            if resolver != ENVIRONMENT:
                yield key, f"the resolver {resolver} is not allowed in a recipe; write the value, or ${{oc.env:NAME}}"
            elif name is None:
                yield key, "the name of the variable must be written out: ${oc.env:NAME}"


def _calls(text: Any) -> Iterator[tuple[str, str | None]]:
    """The resolvers that `text` calls, nested ones too, each with its first argument where that is a plain name."""
    if not isinstance(text, str) or "${" not in text or _KEY.fullmatch(text):
        return
    try:
        tree = parse(text)
    except GrammarParseError:
        # What cannot be read is not resolved either: composing reports it. A name in it is looked for all the same.
        yield from ((match[1], None) for match in re.finditer(r"\$\{\s*([\w.]+):", text))
        return
    yield from _walk(tree)


def _walk(node: Any) -> Iterator[tuple[str, str | None]]:
    if isinstance(node, Grammar.InterpolationResolverContext):
        sequence = node.sequence()
        first = sequence.getChild(0).getText() if sequence is not None else ""
        name = first.strip().strip("\"'")
        yield node.resolverName().getText(), name if _NAME.fullmatch(name) else None
    for position in range(node.getChildCount() if hasattr(node, "getChildCount") else 0):
        yield from _walk(node.getChild(position))
