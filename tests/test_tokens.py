"""Card numbers become tokens; the key stays off the volume."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from multiprocessing import get_context
from pathlib import Path

import pytest

from spearhead.errors import ConfigurationError
from spearhead.settings import Settings
from spearhead.tokens import Tokenizer, tokenizer

KEY = b"a key for tests only"


def test_a_token_is_the_head_of_an_hmac() -> None:
    number = "4599735407877245080"
    expected = int.from_bytes(hmac.new(KEY, number.encode(), hashlib.sha256).digest()[:8], "big")
    assert Tokenizer(KEY).tokens([number, number]).tolist() == [expected, expected]


def test_another_key_gives_another_token() -> None:
    assert Tokenizer(KEY).tokens(["676369110710"]) != Tokenizer(KEY + b"!").tokens(["676369110710"])


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="16"):
        Tokenizer(b"short")


def test_the_key_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "state" / "token.key"
    settings = Settings(flashblade_path=tmp_path / "volume", token_key_file=path, token_key=None)
    first = tokenizer(settings).tokens(["676369110710"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert tokenizer(settings).tokens(["676369110710"]) == first
    assert os.listdir(path.parent) == ["token.key"]


def test_a_key_on_the_volume_is_refused(tmp_path: Path) -> None:
    settings = Settings(flashblade_path=tmp_path, token_key_file=tmp_path / "control" / "token.key", token_key=None)
    with pytest.raises(ConfigurationError, match="TOKEN_KEY_FILE"):
        tokenizer(settings)
    assert not (tmp_path / "control").exists()


def _token(path: Path) -> int:
    settings = Settings(flashblade_path=path.parent / "volume", token_key_file=path, token_key=None)
    return int(tokenizer(settings).tokens(["676369110710"])[0])


def test_processes_that_start_at_once_share_the_key(tmp_path: Path) -> None:
    with get_context("spawn").Pool(4) as pool:
        tokens = pool.map(_token, [tmp_path / "token.key"] * 8, chunksize=1)
    assert len(set(tokens)) == 1


def test_a_key_never_shows(tmp_path: Path) -> None:
    settings = Settings(flashblade_path=tmp_path, token_key="a key that must not show")
    assert "must not show" not in f"{settings!r} {tokenizer(settings)!r} {vars(settings)}"
