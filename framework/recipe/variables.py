"""What a recipe's interpolations call: the environment variables they read, and resolvers that are not allowed.

A recipe may read a variable by a name that is written out (`${oc.env:NAME}`), and other keys (`${a.b}`). Other
resolvers could make components out of text, or read a variable whose name nobody can see in the file.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
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
_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|APIKEY)(_|$)")  # no TOKENIZER_PATH
_TOKEN_SHAPES = re.compile(
    r"\b(AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_\w{30,}|\bgithub_pat_\w{30,}|\bhf_[A-Za-z]{30,}|\bsk-[\w-]{20,}"
    r"|\bxox[abprs]-[\w-]{10,}|\beyJ[\w-]{10,}\.[\w-]{10,}\.|-----BEGIN [A-Z ]*PRIVATE KEY|\bglpat-[\w-]{20,}|://[^/\s:@]+:[^/\s:@]+@"
)
"""What tokens of well-known services look like, private keys, and passwords in addresses."""
ENTROPY_BITS = 3.5
"""Bits a character from which a value of a key that names a credential is taken for one."""


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


def is_secret(name: str) -> bool:
    """True where a variable's name, or what it holds now, says that its value must not be written anywhere."""
    return names_secret(name) or looks_secret(os.environ.get(name, ""))


def names_secret(name: str) -> bool:
    """True for the name of a variable or key that holds a credential."""
    return _SECRET.search(re.sub(r"(?<=[a-z])(?=[A-Z])|-", "_", name).upper()) is not None


def looks_secret(value: str) -> bool:
    """True for a text that has the shape of a token, a private key, or an address with a password."""
    return _TOKEN_SHAPES.search(value) is not None


def is_credential(key: Key, value: Any) -> bool:
    """True for a literal secret: a token's shape anywhere, or a random text under a key that names a credential."""
    if not isinstance(value, str) or "${" in value:
        return False
    named = bool(key) and names_secret(key[-1])
    return looks_secret(value) or (named and len(value) >= 12 and _entropy(value) >= ENTROPY_BITS - 1.0)


def _entropy(text: str) -> float:
    """Shannon entropy (bits a character)."""
    shares = [count / len(text) for count in Counter(text).values()]
    return -sum(share * math.log2(share) for share in shares)


def _calls(text: Any) -> Iterator[tuple[str, str | None]]:
    """The resolvers that `text` calls, nested ones too, each with its first argument where that is a plain name."""
    if not isinstance(text, str) or "${" not in text:
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
