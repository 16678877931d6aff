"""Keys by which the processes of one run know each other: files in the run's folder that only their owner can read."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from framework.run.files import create_text

KEY_BYTES = 32
TIMEOUT_S = 10.0
"""How long a key that another node has written may take to appear on a shared file system (s)."""


class KeyFileError(ValueError):
    """A key that cannot be used. The message names the file and the remedy."""


def shared_key(file: Path) -> bytes:
    """Return the key in `file`. Of all processes the first creates it. Raises `KeyFileError` for a key that others can
    read, or that is none.
    """
    deadline = time.monotonic() + TIMEOUT_S
    create_text(file, secrets.token_hex(KEY_BYTES), mode=0o600)
    while True:
        try:
            mode, text = file.lstat().st_mode, file.read_text(encoding="ascii", errors="replace")
            break
        except FileNotFoundError:  # another node has created it, and this node's cache does not know it yet
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    if mode & 0o077:
        raise KeyFileError(f"{file}: mode {mode & 0o777:04o} lets others read or replace the key; remove the file")
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise KeyFileError(f"{file}: not a key of {KEY_BYTES} bytes in hexadecimal; remove the file")
    return key
