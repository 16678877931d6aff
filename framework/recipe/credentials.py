"""What a credential is: by the name of its variable or key, by its shape, by its randomness. And masking what leaves.

A recipe names the variable of a secret, in `launch.secrets` or as an argument; the process that needs the value reads
it. The value itself is refused in a recipe and masked in what a process prints. Imports nothing of the framework, so
that every room may mask.
"""

from __future__ import annotations

import base64
import html
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any, TextIO
from urllib.parse import quote, quote_plus

from framework.recipe.secret_shapes import ASSIGNED, SHAPES, has_shape, hidden, is_assigned

MASK = "***"
"""What is printed instead of a secret."""
SHORTEST = 8
"""Characters of the shortest value of a variable that is masked: shorter ones are found in innocent text."""
RANDOM_LENGTH = 12
"""Characters of the shortest text that is judged by its randomness."""
RANDOM_BITS = 2.5
"""Bits a character from which a text under a key that names a credential is one."""
_ANYWHERE = re.compile(
    r"PASSWOR[DT]|PASSWD|PASSPHRASE|PASSCODE|PSWD|CREDENTIAL|SECRET|MNEMONIC|SEED_?PHRASE|CONN(ECTION)?_?STR(ING)?"
    r"|(API|ACCESS|PRIVATE|AUTH|ACCOUNT|SIGNING|ENCRYPTION|SSH)_?(KEY|TOKEN)"
)
_WORD = r"(^|_)(KEY|TOKEN|PASS|PWD|PW|PAT|AUTH|AUTH_HEADER|AUTHORIZATION|BEARER|COOKIE|CREDS?|DSN|JWT)\d*"
_VARIABLE_WORD = re.compile(_WORD + r"(_|$)")  # GH_TOKEN_READ; no MONKEY, no TOKENIZER_PATH
_KEY_WORD = re.compile(_WORD + r"$")  # pad_token; no token_mean, no key_frames
_SPECIAL = re.compile(r"<.*>|\[[A-Z]+\]")  # a tokenizer's special token
_INNOCENT = re.compile(r"(^|_)(PATH|FILE|DIR|FOLDER|LENGTH|COUNT|ID|NAME)S?$")  # SSH_KEY_PATH says where, not what
_WORKING_FOLDER = "PWD"  # the shell's, which names where output lies
_PURE = re.compile(r"(^|_)(PASSWORDS?|PASSWD|PASSPHRASE|SECRET|API_?KEYS?|ACCESS_?TOKEN|AUTH_?TOKEN|PRIVATE_?KEY)$")
_NAMES = (("launch", "secrets"), ("launch", "secret"), ("not_secret",))
"""The keys that hold names of variables, of keys and of a cluster's secret."""


def is_secret(variable: str) -> bool:
    """True where a variable's name, or what it holds now, says that its value must not be written anywhere."""
    value = os.environ.get(variable, "")
    return names_secret(variable) or looks_secret(value) or _holds(value, known_values())


def _holds(text: str, known: Collection[str]) -> bool:
    """Whether a text is one of the `known` values, or holds one that is too long to be a word."""
    return text in known or any(len(value) >= RANDOM_LENGTH and value in text for value in known)


def known_values() -> frozenset[str]:
    """What those variables of the environment hold whose names say that they are secrets, as it is and encoded."""
    values = [value for name, value in os.environ.items() if len(value) >= SHORTEST and names_secret(name)]
    return frozenset(form for value in values for form in _forms(value))


@lru_cache(maxsize=1024)
def _forms(value: str) -> frozenset[str]:
    """A secret as it is, and as text would show it: its longer lines, quoted for JSON and addresses, and in base64."""
    lines = [line for line in value.splitlines() if len(line) >= 2 * SHORTEST]
    quoted = [json.dumps(value)[1:-1], quote(value, safe=""), quote_plus(value), html.escape(value)]
    raw = value.encode()
    encoded = [raw.hex()] if len(raw) >= SHORTEST else []
    for shift in range(3):  # where in a longer text it starts: what depends on its neighbours is cut off
        text = base64.b64encode(b"\0" * shift + raw).decode().rstrip("=")
        core = text[-(-shift * 8 // 6) : len(text) if (shift + len(raw)) % 3 == 0 else -1]
        encoded += [core, core.replace("+", "-").replace("/", "_")] if len(core) >= RANDOM_LENGTH else []
    return frozenset([value, *lines, *quoted, *encoded])


def names_secret(name: str) -> bool:
    """True for the name of a variable or key that holds a credential."""
    if name == _WORKING_FOLDER:
        return False
    words = _words(name)
    word = _VARIABLE_WORD if name.isupper() else _KEY_WORD
    return bool(_ANYWHERE.search(words) or word.search(words)) and not _INNOCENT.search(words)


def looks_secret(value: str) -> bool:
    """True for a text that holds the token of a well-known service, a private key, or an address with a password, also
    encoded.
    """
    return has_shape(value) or any(hidden(value))


def tells_secret(text: str, known: Collection[str]) -> bool:
    """True for text for people, such as a comment, that holds a secret or one of the `known` values, or gives one by
    its name: `password: ...`.
    """
    return looks_secret(text) or _holds(text, known) or is_assigned(text)


def is_credential(key: Sequence[str], value: Any, known: Collection[str] = ()) -> bool:
    """True for a literal secret: a token's shape or one of the `known` values anywhere, any text under a key that can
    only hold a secret, or random text under a key that may hold one. What a list holds stands under the list's key.

    The name of a variable is none: it is how a recipe refers to a secret.
    """
    if isinstance(value, bool) or not isinstance(value, str | int) or (isinstance(value, str) and "${" in value):
        return False
    text, name = str(value), next((str(part) for part in reversed(key) if not str(part).isdecimal()), "")
    if looks_secret(text) or is_assigned(text) or _holds(text, known):
        return True
    if any(tuple(key[: len(names)]) == names for names in _NAMES):
        return False
    if not names_secret(name) or not text or re.fullmatch(r"[A-Z][A-Z0-9_]*", text) or _SPECIAL.fullmatch(text):
        return False
    pure = _PURE.search(_words(name)) is not None
    return pure or (len(text) >= RANDOM_LENGTH and _entropy(text) >= RANDOM_BITS)


def _words(name: str) -> str:
    """The words of a variable or key in capitals, with underscores between them: `apiKey` is API_KEY."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|[-. ]", "_", name).upper()


def _entropy(text: str) -> float:
    """Shannon entropy (bits a character)."""
    shares = [count / len(text) for count in Counter(text).values()]
    return -sum(share * math.log2(share) for share in shares)


def masked(text: str) -> str:
    """`text` without the values of the environment's secrets and without what looks like a secret."""
    return _without(text, _secrets(frozenset(os.environ.items())))


def _without(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, MASK)
    for triggers, pattern in SHAPES:
        if any(each in text for each in triggers):
            text = pattern.sub(MASK, text)
    if is_assigned(text):
        text = ASSIGNED.sub(lambda found: found[0][: found.start("value") - found.start()] + MASK, text)
    for encoded in list(hidden(text)):
        text = text.replace(encoded, MASK)
    return text


@lru_cache(maxsize=4)
def _secrets(environment: frozenset[tuple[str, str]]) -> tuple[str, ...]:
    """What is masked of the environment of now, in all its forms, the longest first."""
    known = known_values()
    values = set(known)
    for _, value in environment:
        if len(value) >= SHORTEST and (looks_secret(value) or _holds(value, known)):
            values |= _forms(value)
    return tuple(sorted(values, key=len, reverse=True))


class MaskedStream:
    """A text stream that masks the environment's secrets, and what looks like one, in each write.

    Values are those of the moment when it was made. A secret that is cut into several writes passes.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._secrets = _secrets(frozenset(os.environ.items()))

    def write(self, text: str) -> int:
        """Write `text`, masked; returns its length, as a stream does."""
        self.stream.write(_without(text, self._secrets))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of `lines`, masked."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def mask_output() -> None:
    """Mask secrets in what this process prints from now on: results, logs and tracebacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, MaskedStream):
            setattr(sys, name, MaskedStream(stream))
