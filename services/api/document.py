"""The tables of docs/API_PAYLOADS.md, from the shapes and from answers of a real run; a test holds them together.

``python -m services.api.document`` writes the page anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

import msgspec
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from services.api import examples, schemas

PAGE: Final = Path(__file__).parents[2] / "docs" / "API_PAYLOADS.md"
SHAPES: Final[dict[str, tuple[str, type[BaseModel]]]] = {
    "business": ("`GET /api/business/metrics`", schemas.BusinessMetrics),
    "dashboard": ("`GET /api/dashboard`", schemas.Dashboard),
    "backlog": ("`GET /api/backlog/status`", schemas.BacklogStatus),
    "pressure": ("`GET /api/backlog/pressure`", schemas.BacklogPressure),
    "history": ("`GET /api/history`", schemas.History),
    "model_details": ("`GET /api/model`", schemas.ModelDetails),
}
OTHERS: Final[dict[str, type[BaseModel]]] = {
    "`WS /ws/metrics`, each message": schemas.LiveMessage,
    "`POST /api/transactions`, a row": schemas.TransactionIn,
    "`POST /api/transactions`, the answer": schemas.Ingested,
    "`POST /api/labels`, a label": schemas.LabelIn,
    "`POST /api/labels`, the answer": schemas.LabelsTaken,
    "`GET /api/transactions/{trans_num}`, and each of `GET /api/signals`": schemas.Decision,
    "`GET /api/transactions/{trans_num}`, once the result file is gone": schemas.ArchivedDecision,
    "`GET /api/signals`": schemas.SignalPage,
    "`GET /readyz`": schemas.Ready,
    "`POST /api/control/start`, `stop`, `reset`": schemas.Done,
    "`GET` and `POST /api/control/throttle`": schemas.Throttle,
    "`GET` and `POST /api/control/priority`": schemas.PriorityDone,
    "Every refusal of control, ingest and look-ups": schemas.Refusal,
}
MARK: Final = "<!-- What follows is made by python -m services.api.document -->\n"

MEANINGS: Final[dict[str, str]] = msgspec.json.decode(Path(__file__).with_name("meanings.json").read_bytes())


def fields(shape: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(path, type, meaning) of every field, those of nested shapes included; ``[]`` marks entries of a list."""
    shape.model_rebuild()  # else what is declared further down in schemas.py has no fields yet
    for name, field in shape.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        yield path, _kind(field.annotation), _meaning(name, field)
        inner, suffix = _nested(field.annotation)
        if inner is not None:
            yield from fields(inner, f"{path}{suffix}.")


def page() -> str:
    """The whole page: what is written by hand, then every field."""
    parts = [PAGE.read_text().partition(MARK)[0] + MARK]
    for name, (title, shape) in SHAPES.items():
        example = msgspec.json.format(msgspec.json.encode(examples.all_examples()[name]), indent=1).decode()
        parts.append(
            f"## {title}\n\n{_table(shape)}\n\n<details><summary>A real answer (lists cut to three)</summary>\n\n"
        )
        parts[-1] += f"```json\n{example}\n```\n\n</details>\n"
    parts += [f"## {title}\n\n{_table(shape)}\n" for title, shape in OTHERS.items()]
    return "\n".join(parts)


def _table(shape: type[BaseModel]) -> str:
    rows = [f"| `{path}` | {kind} | {meaning} |" for path, kind, meaning in fields(shape)]
    return "\n".join(["| field | type | meaning |", "| --- | --- | --- |", *rows])


def _meaning(name: str, field: FieldInfo) -> str:
    """Its own description, or what fields of that name mean. Raises KeyError for one that nobody has described."""
    return (field.description or MEANINGS[name]).replace("|", "\\|")


def _nested(kind: Any) -> tuple[type[BaseModel] | None, str]:
    """The shape inside an annotation, and how its path goes on."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind, ""
    suffix = {list: "[]", dict: ".*"}.get(get_origin(kind), "")
    for one in get_args(kind):
        inner, more = _nested(one)
        if inner is not None:
            return inner, suffix + more
    return None, ""


def _kind(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        names = [_kind(one) for one in inner if one is not NoneType]
        return " or ".join(names) + (" or null" if NoneType in inner else "")
    if origin is Literal:
        return " or ".join(f"`{value!r}`".replace("'", '"') for value in inner)
    if origin is list:
        return f"list of {_kind(inner[0])}"
    if origin is dict:
        return f"object of {_kind(inner[1])}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "object"
    return {float: "number", int: "integer", str: "string", bool: "boolean", NoneType: "null"}.get(kind, "any")


if __name__ == "__main__":
    PAGE.write_text(page())
