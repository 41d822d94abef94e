"""Real answers of a real run, kept in ``examples.json``, as examples in OpenAPI."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import msgspec

FILE = Path(__file__).with_name("examples.json")


@cache
def all_examples() -> dict[str, Any]:
    examples: dict[str, Any] = msgspec.json.decode(FILE.read_bytes())
    return examples


def of(name: str) -> dict[int | str, dict[str, Any]]:
    """``responses`` of a route whose answer is the example of that name."""
    return {200: {"content": {"application/json": {"example": all_examples()[name]}}}}
