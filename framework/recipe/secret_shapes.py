"""What secrets look like: the tokens of well-known services, private keys, addresses and headers that hold a password.

The forms of tokens are those that their services document, and that GitHub's secret scanning lists. Imports nothing of
the framework.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from urllib.parse import unquote

_PREFIXES = {
    "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_": r"\w{30,}",  # GitHub
    "glpat- gldt- glrt- glcbt- glptt- glft- glsoat- glimt- glagent- glffct-": r"[\w.-]{20,}",  # GitLab
    "hf_ api_org_": r"[A-Za-z0-9]{30,}",  # Hugging Face
    "wandb_v1_ nvapi- gsk_ r8_ pplx- xai- fw_ csk-": r"(?=[\w-]{0,99}\d)[\w-]{20,}",  # where models are served
    "sk-": r"(?=[\w-]{0,99}\d)[\w-]{20,}",  # OpenAI, Anthropic and others
    "sk_live_ sk_test_ rk_live_ rk_test_ whsec_": r"[A-Za-z0-9+/=]{16,}",  # Stripe
    "xoxa- xoxb- xoxe- xoxe. xoxo- xoxp- xoxr- xoxs- xapp-": r"[\w.-]{10,}",  # Slack
    "AIza": r"[\w-]{35}",
    "GOCSPX- ya29. 1//0": r"[\w-]{20,}",  # Google
    "hvs. hvb. hvr.": r"(?=[\w-]{0,99}\d)[\w-]{20,}",  # HashiCorp Vault
    "npm_ lin_api_ lin_oauth_ rubygems_ figd_ ntn_ sbp_ dckr_pat_ dckr_oat_": r"[\w-]{24,}",
    "glsa_ glc_ eyJrIjoi sntrys_ sntryu_ dt0c01. NRAK- phc_ phx_ CCIPAT_ CCIPRJ_": r"[\w.+/=-]{20,}",  # monitoring, CI
    "tskey-": r"[a-z]+-[\w-]{16,}",
    "pypi-": r"[\w-]{50,}",
    "dop_v1_ doo_v1_ dor_v1_": r"[0-9a-f]{64}",
    "dapi dose": r"[0-9a-f]{32}(?:-\d)?\b",  # Databricks
    "shpat_ shpca_ shppa_ shpss_": r"[0-9a-fA-F]{32}",
    "ATATT3xFfGF0 ATBB ATCTT3xFfGN0": r"[\w=-]{20,}",  # Atlassian
    "SG.": r"[\w-]{16,32}\.[\w-]{16,64}",  # SendGrid
    "FwoGZXIvYXdz IQoJb3JpZ2lu": r"[\w+/=]{40,}",  # a session of AWS
    "AGE-SECRET-KEY-1": r"[0-9A-Z]{58}",
    "b3BlbnNzaC1rZXktdjE": r"[\w+/=]*",  # the body of a key of OpenSSH
}
"""{what tokens begin with: the rest}."""
_QUERY = (
    "sig|signature|x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|awsaccesskeyid"
    "|access_token|id_token|refresh_token|auth|token|api_?key|password|passwd|pwd|pw|secret|client_secret"
)
"""Parameters of an address that open it, those of signed ones included."""
SHAPES: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...] = (
    *(
        (tuple(starts.split()), re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, starts.split()))}){rest}"))
        for starts, rest in _PREFIXES.items()
    ),
    *(
        (triggers, re.compile(pattern))
        for triggers, pattern in (
            (("AKIA", "ASIA"), r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
            (("SK",), r"\bSK[0-9a-f]{32}\b"),  # Twilio
            ((":AA",), r"\b\d{8,10}:AA[\w-]{32,}"),  # a bot of Telegram
            (("eyJ",), r"\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*"),
            (
                ("hooks.slack.com", "/api/webhooks/", "webhook.office.com"),
                r"(?:hooks\.slack\.com/(?:services|workflows|triggers)|discord(?:app)?\.com/api/webhooks"
                r"|webhook\.office\.com/webhookb2)/[\w/@.-]{16,}",
            ),
            (
                ("PRIVATE KEY",),
                r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----"
                r"(?:[\s\S]{0,9999}?-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----|(?:\s|\\[nr]|[\w+/=])*)",
            ),
            (("PuTTY-User-Key-File",), r"PuTTY-User-Key-File-\d: \S+[\s\S]*?(?:Private-MAC: \w+|\Z)"),
            (("://",), r"(?<=://)[^/\s:@\"'<>]*:[^/\s\"'<>$]+(?=@)|(?<=://)[\w-]{20,}(?=@)"),
            (("AccountKey=", "AccessKey="), r"(?<=AccountKey=)[\w+/=]{20,}|(?<=SharedAccessKey=)[\w+/=]{20,}"),
            (("earer ", "EARER "), r"(?i:(?<=bearer )[\w.~+/-]{16,}=*)"),
            (("Basic ", "basic "), r"(?:(?<=Basic )|(?<=authorization: basic ))[\w+/-]{12,}=*"),
            (("uthorization:", "UTHORIZATION:"), r"(?i:(?<=authorization:)\s*[a-z]+ [\w.~+/=-]{8,})"),
            (("ookie:",), r"(?i:(?<=cookie:)\s*(?=[^\s;]{0,999}\d)[^\s;=]{1,200}=[^\s;]{12,})"),
            (("=", "%3D", "%3d"), rf"(?i:(?:[?&;]|%26|%3F|\\u0026)(?:{_QUERY})(?:=|%3D))[\w%.~+/-]{{8,}}"),
            (("--",), r"(?i:--(?:password|passwd|token|api-?key|secret)[= ])[^\s'\"$]{8,}"),
            (("-u", "--user", "--proxy-user"), r"(?<=\s)(?:-u|--user|--proxy-user)[ =]?[^\s:/]+:(?!\d+\b)[^\s:/$]{6,}"),
            (("sshpass",), r"sshpass\s+-p\s*\S{4,}"),
            (("login",), r"\b(?:machine\s+\S+|default)\s+login\s+\S+\s+password\s+\S+"),
        )
    ),
)
"""Texts of which one is in each that has such a secret, and the secret's pattern."""
_TRIGGER = re.compile("|".join(re.escape(each) for triggers, _ in SHAPES for each in triggers))
"""Any of these texts: most texts hold none, and are looked through once."""
_QUOTE = r"(?:['\"]|\\\"|&#39;|&#34;|&quot;)?"
ASSIGNED = re.compile(
    r"(?:(?i:password|passwd|passphrase|(?:api|access|private|secret)[_-]?key|(?:auth|access)[_-]?token"
    r"|client[_-]?secret)|(?<![A-Za-z0-9])(?:[A-Z0-9]{1,40}_){0,9}(?:TOKEN|SECRET|PASS|PWD)(?==))"
    rf"{_QUOTE}\s*[=:]\s*{_QUOTE}(?P<value>(?![A-Z][A-Z0-9_]*\b|https?:)"
    r"(?=[^\s'\"]{0,199}[\d!@#%^&])[^\s'\",;&<>{}()\[\]$]{8,})"
)
"""A text that gives a secret by a name that can mean nothing else: `password=...`. Its value is no plain word."""
_ASSIGNED_WORDS = ("passw", "passphrase", "key", "token", "secret", "pass=", "pwd=")
"""Texts of which one is in each that `ASSIGNED` matches, in small letters."""
ENCODED = re.compile(r"[A-Za-z0-9+/_-]{24,2048}={0,6}")
"""What may be text in base64, base32 or hexadecimal."""
_ADDRESS = re.compile(r"[\w.~+/%-]+")
"""What may be a part of an address. No character is looked at twice: a page's pictures are a word of megabytes."""
_ESCAPES = re.compile(r"(?:%[0-9A-Fa-f]{2}){3}")
"""What tells text in the escapes of an address."""
_NESTED = 3
"""So often text is decoded that is encoded again."""
_MOST_BYTES = 1 << 16
"""Bytes to which a compressed text may unpack."""


def has_shape(text: str) -> bool:
    """Whether a text holds a secret as it is."""
    return _TRIGGER.search(text) is not None and any(
        pattern.search(text) for triggers, pattern in SHAPES if any(each in text for each in triggers)
    )


def is_assigned(text: str) -> bool:
    """Whether a text gives a secret by its name."""
    lowered = text.lower()
    return any(word in lowered for word in _ASSIGNED_WORDS) and ASSIGNED.search(text) is not None


def hidden(text: str) -> Iterator[str]:
    """The parts of a text that are a secret encoded: in base64, base32, hexadecimal, compressed, in the escapes of an
    address, or in letters that only look like those of a token.
    """
    yield from (found[0] for found in ENCODED.finditer(text) if _hides(found[0]))
    if _ESCAPES.search(text):
        parts = (found[0] for found in _ADDRESS.finditer(text))
        yield from (part for part in parts if _ESCAPES.search(part) and _hides(part))
    if not text.isascii():
        plain = "".join(each for each in unicodedata.normalize("NFKC", text) if unicodedata.category(each) != "Cf")
        if plain != text and has_shape(plain):
            yield text


@lru_cache(maxsize=512)
def _hides(text: str, depth: int = _NESTED) -> bool:
    """Whether a text is the encoding of one that looks like a secret."""
    for plain in _decoded(text):
        if has_shape(plain) or (depth > 1 and any(_hides(found[0], depth - 1) for found in ENCODED.finditer(plain))):
            return True
    return False


def _decoded(text: str) -> Iterator[str]:
    """The texts of which this may be the encoding."""
    if "%" in text:
        yield unquote(text, errors="ignore")
        return
    if len(text) % 2 == 0 and re.fullmatch("[0-9a-fA-F]+", text):
        yield from _plain(bytes.fromhex(text))
    if re.fullmatch("[A-Z2-7]+=*", text):
        core = text.rstrip("=")
        with suppress(binascii.Error):
            yield from _plain(base64.b32decode(core + "=" * (-len(core) % 8)))
    for shift in range(4):
        part = text[shift:].rstrip("=").replace("-", "+").replace("_", "/")
        yield from _plain(base64.b64decode(part[: len(part) // 4 * 4]))


def _plain(data: bytes) -> Iterator[str]:
    """Bytes as text, unpacked where they are compressed; nothing where they are no text."""
    if data[:2] in (b"\x1f\x8b", b"\x78\x9c", b"\x78\xda"):
        try:
            data = zlib.decompressobj(wbits=47).decompress(data, _MOST_BYTES)
        except zlib.error:
            return
    if data.isascii():
        yield data.decode()
