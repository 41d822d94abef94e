"""Card numbers become tokens at the edge: the first 8 bytes of HMAC-SHA256 under a key that is not on the volume.

The key is TOKEN_KEY, or the content of TOKEN_KEY_FILE, which is made once (mode 0600) and shared by whatever ingests.
Neither the key nor a card number is ever written to the volume or to a log: mask.py is for texts that may hold one.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from spearhead.errors import ConfigurationError
from spearhead.files import Files
from spearhead.settings import Settings

MIN_KEY_BYTES: Final = 16
CACHED_CARDS: Final = 250_000  # some 40 MB


class Tokenizer:
    """Turns card numbers into tokens; remembers those it has seen, as traffic repeats cards."""

    def __init__(self, key: bytes) -> None:
        if len(key) < MIN_KEY_BYTES:
            raise ConfigurationError(f"the token key has {len(key)} bytes, it needs {MIN_KEY_BYTES} or more")
        self._key = key
        self._seen: dict[str, int] = {}

    def tokens(self, numbers: Sequence[str]) -> NDArray[np.uint64]:
        """Tokens (n,) uint64 of card numbers (n,), given as digits only."""
        if len(self._seen) + len(numbers) > CACHED_CARDS:
            self._seen.clear()
        seen = self._seen
        out = np.empty(len(numbers), np.uint64)
        for i, number in enumerate(numbers):
            token = seen.get(number)
            if token is None:
                token = seen[number] = int.from_bytes(hmac.digest(self._key, number.encode(), "sha256")[:8], "big")
            out[i] = token
        return out


def tokenizer(settings: Settings) -> Tokenizer:
    """The tokenizer of these settings. Raises ConfigurationError if the key is too short or lies on the volume."""
    if settings.token_key is not None:
        return Tokenizer(settings.token_key.get_secret_value().encode())
    return Tokenizer(_key_from_file(settings.token_key_file.expanduser().absolute(), settings.flashblade_path))


def _key_from_file(path: Path, volume: Path) -> bytes:
    if path.resolve().is_relative_to(volume.expanduser().resolve()):
        raise ConfigurationError(
            f"TOKEN_KEY_FILE {path} lies on the volume, where the tokens are: put it elsewhere or set TOKEN_KEY"
        )
    try:
        return path.read_bytes().strip()
    except FileNotFoundError:
        return _make_key(path)
    except OSError as error:
        raise ConfigurationError(f"can't read TOKEN_KEY_FILE {path} ({error.strerror}): set TOKEN_KEY") from error


def _make_key(path: Path) -> bytes:
    """Make the key; when two processes do at once, both use the one that was first in place."""
    files = Files()
    private = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(private, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        private.write_bytes(secrets.token_hex(32).encode())
        files.sync_file(private)
        files.link(private, path)
        files.remove(private)
        return path.read_bytes().strip()
    except OSError as error:
        raise ConfigurationError(
            f"can't make TOKEN_KEY_FILE {path} ({error.strerror}): set TOKEN_KEY, or a file that can be written"
        ) from error
