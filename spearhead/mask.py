"""What may be a card number is made unreadable: the one way by which texts get to the volume, a log or an answer.

A run of 11 or more digits is masked, also in groups ("4111 1111-1111.1111", or with colons and nothing else between
them, for times of day must stay readable) and with other scripts' digits. Names of segments are the one exception, for
what a log says must be found on the volume; their numbers begin with a zero.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_SPACES: Final = r" \t\u00a0\u2007\u2009\u202f"
_SIGNS: Final = r"._/\u2010-\u2015-"
LONG_NUMBER: Final = rf"\d(?:[{_SPACES}{_SIGNS}]{{0,3}}\d){{10,}}|\d(?::{{0,3}}\d){{10,}}"  # as polars reads it too

_NAME: Final = r"(?<![0-9A-Za-z])e\d{4}-[a-z]\d{2}-(?:p\d{2}-)?0\d{11}(?!\d)"
_NAME_OR_NUMBER: Final = re.compile(f"({_NAME})|{LONG_NUMBER}")
_NUMBER_ALONE: Final = re.compile(rf"(?<![0-9A-Za-z])(?:{LONG_NUMBER})(?![0-9A-Za-z])")
_CUT_SHORT: Final = re.compile(rf"[\d:{_SPACES}{_SIGNS}]+\Z")


def mask(text: str) -> str:
    """``text`` with every run of 11 or more digits turned into stars, separators between the digits included."""
    return _NAME_OR_NUMBER.sub(lambda found: found[1] or "*" * len(found[0]), text)


def may_be_card(text: str) -> bool:
    """Whether 12 to 19 digits stand alone in it, in groups too: hexadecimal numbers don't count."""
    return any(True for _ in _alone(text))


def is_card(text: str) -> bool:
    """Whether such digits have the check digit that every card number has (Luhn)."""
    return any(_luhn(digits) % 10 == 0 for digits in _alone(text))


def _alone(text: str) -> Iterator[list[int]]:
    for run in _NUMBER_ALONE.finditer(text):
        digits = [int(digit) for digit in run[0] if digit.isdigit()]
        if 12 <= len(digits) <= 19:
            yield digits


def _luhn(digits: list[int]) -> int:
    return sum(digits[-1::-2]) + sum(2 * digit - 9 * (digit > 4) for digit in digits[-2::-2])


def mask_start(text: str, length: int) -> str:
    """The first ``length`` characters, masked; digits at the cut, which may go on behind it, are masked as well."""
    if len(text) <= length:
        return mask(text)
    return mask(_CUT_SHORT.sub(lambda found: "*" * len(found[0]), text[:length]))


def mask_bytes(content: bytes) -> bytes:
    """As ``mask``, for bytes of any kind, of which all that is not masked stays as it is."""
    return mask(content.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
