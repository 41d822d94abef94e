"""Rows and labels in, decisions out: ``POST /api/transactions``, ``POST /api/labels`` and the look-ups."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Final, TypeVar

import msgspec
from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import JSONResponse, Response

from services.api import labels, lookups, rows, schemas
from services.api.context import Context
from services.api.controls import Authorised, RefusedError, refusals
from services.api.ingest import BusyError, ConflictError, Outcome, check
from services.api.limiter import SaturatedError, Stopped
from spearhead.errors import ConfigurationError
from spearhead.runner import describe
from spearhead.segment import SegmentError
from spearhead.volume import VolumeError

MAX_BYTES: Final = 32 * 1024**2
T = TypeVar("T")
_KEY = re.compile(r"^[\x21-\x7e]{1,200}$")
router = APIRouter()
_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            rows.JSON: {"schema": {"type": "array", "items": {"$ref": "#/components/schemas/TransactionIn"}}},
            rows.NDJSON[0]: {"schema": {"type": "string", "description": "One such object a line"}},
            rows.ARROW: {"schema": {"type": "string", "format": "binary"}},
        },
    }
}

_LABELS: Final = {
    "requestBody": {
        "required": True,
        "content": {
            rows.JSON: {"schema": {"type": "array", "items": {"$ref": "#/components/schemas/LabelIn"}}},
            rows.NDJSON[0]: {"schema": {"type": "string", "description": "One such object a line"}},
        },
    }
}


@router.post(
    "/api/transactions",
    tags=["transactions"],
    status_code=202,
    response_model=schemas.Ingested,
    responses=refusals(400, 401, 403, 409, 413, 415, 503)
    | {422: {"model": schemas.Ingested, "description": "No row is acceptable"}},
    openapi_extra=_BODY,
)
async def post_transactions(
    request: Request,
    context: Authorised,
    idempotency_key: Annotated[str | None, Header(description="Repeats the answer instead of the rows")] = None,
) -> Response:
    """Take rows to score: a JSON list, NDJSON or an Arrow stream. 202 means that the accepted ones are durable."""
    if idempotency_key is not None and not _KEY.match(idempotency_key):
        raise RefusedError(400, "Idempotency-Key must be 1 to 200 printable ASCII characters without spaces")
    body = await _read(request)
    content_type = request.headers.get("content-type", "")
    outcome = await asyncio.to_thread(_take, context, body, content_type, idempotency_key)
    return JSONResponse(
        {"success": outcome.accepted > 0, **msgspec.to_builtins(outcome)}, 202 if outcome.accepted else 422
    )


@router.post(
    "/api/labels",
    tags=["transactions"],
    status_code=202,
    response_model=schemas.LabelsTaken,
    responses=refusals(400, 401, 403, 409, 413, 415, 503)
    | {422: {"model": schemas.LabelsTaken, "description": "No label is acceptable"}},
    openapi_extra=_LABELS,
)
async def post_labels(
    request: Request,
    context: Authorised,
    idempotency_key: Annotated[str | None, Header(description="Repeats the answer instead of the labels")] = None,
) -> Response:
    """Take labels of earlier transactions: a JSON list or NDJSON. 202 means that the accepted ones are durable."""
    if idempotency_key is not None and not _KEY.match(idempotency_key):
        raise RefusedError(400, "Idempotency-Key must be 1 to 200 printable ASCII characters without spaces")
    body = await _read(request)
    content_type = request.headers.get("content-type", "")
    told = await asyncio.to_thread(_take_labels, context, body, content_type, idempotency_key)
    return JSONResponse({"success": told.accepted > 0, **msgspec.to_builtins(told)}, 202 if told.accepted else 422)


def _take_labels(context: Context, body: bytes, content_type: str, key: str | None) -> labels.Accepted:
    """Parse, check and put into the folder. Raises RefusedError."""
    try:
        if key is not None and (before := labels.answered(context.volume, key, body)) is not None:
            return before
        if (reason := context.held_back()) is not None:
            raise RefusedError(503, reason)
        return labels.take(context.volume, labels.parse(body, content_type), body, key)
    except rows.BodyError as error:
        raise RefusedError(error.status, str(error)) from error
    except ConflictError as error:
        raise RefusedError(409, str(error)) from error
    except (BusyError, OSError, VolumeError, msgspec.DecodeError) as error:
        context.log.error("labels not taken", reason=describe(error))
        raise RefusedError(503, f"labels can't be taken now: {describe(error)}") from error


async def _read(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BYTES:
            raise RefusedError(413, f"a request takes {MAX_BYTES:,} bytes at most")
        parts.append(part)
    return b"".join(parts)


def _take(context: Context, body: bytes, content_type: str, key: str | None) -> Outcome:
    """Parse, check and publish. Raises RefusedError."""
    try:
        ingest = context.ingest()
        if key is not None and (before := ingest.answer(body, key)) is not None:
            return before
        if (reason := context.held_back()) is not None:
            raise RefusedError(503, reason)
        return ingest.take(check(rows.parse(body, content_type), ingest.tokens), body, key)
    except rows.BodyError as error:
        raise RefusedError(error.status, str(error)) from error
    except ConflictError as error:
        raise RefusedError(409, str(error)) from error
    except (BusyError, OSError, VolumeError, ConfigurationError, SegmentError, msgspec.DecodeError) as error:
        context.log.error("ingest failed", reason=describe(error))
        raise RefusedError(503, f"rows can't be taken now: {describe(error)}") from error


@router.get(
    "/api/transactions/{trans_num}",
    tags=["transactions"],
    response_model=schemas.Decision | schemas.ArchivedDecision,
    responses=refusals(404, 503),
)
async def get_transaction(
    request: Request, trans_num: Annotated[str, Path(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")]
) -> Response:
    """The decision on one transaction, its score and model, once made and as long as its file is kept.

    Of a row without a label the archive tells longer, with `null` for what it does not have.
    """
    context: Context = request.app.state.context
    found = await _look(
        request, lambda epoch, stopped: lookups.find(context.volume, epoch, trans_num, context.explainer, stopped)
    )
    if found is None:
        raise RefusedError(404, "no decision on this transaction: it is not made yet, or no longer kept")
    return Response(msgspec.json.encode(found), media_type="application/json")


@router.get("/api/signals", tags=["transactions"], response_model=schemas.SignalPage, responses=refusals(400, 503))
async def get_signals(
    request: Request,
    category: str | None = None,
    state: str | None = None,
    min_score: Annotated[float, Query(ge=0, le=1)] = 0.0,
    since: Annotated[str | None, Query(description="ISO 8601 time of the decision")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Annotated[str | None, Query(description="`next` of the page before")] = None,
) -> Response:
    """Flagged transactions, newest first, page by page."""
    context: Context = request.app.state.context
    try:
        after = lookups.Cursor.parse(cursor) if cursor is not None else None
        wanted = lookups.Filter(category, state, min_score, _microseconds(since))
    except (ValueError, OverflowError) as error:
        raise RefusedError(400, f"since or cursor is not what it should be: {error}") from error
    page, after = await _look(
        request,
        lambda epoch, stopped: lookups.signals(context.volume, epoch, wanted, limit, after, context.explainer, stopped),
    )
    answer = {"signals": page, "next": str(after) if after else None}
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def _look(request: Request, read: Callable[[int, Stopped], T]) -> T:
    """Read the volume from a thread, few at once, as long as the client waits. Raises RefusedError."""
    context: Context = request.app.state.context
    try:
        return await context.lookups.run(
            lambda stopped: read(context.volume.epoch(), stopped), gone=request.is_disconnected
        )
    except SaturatedError as error:
        raise RefusedError(503, "as many look-ups as can be made at once are being made; send it again") from error
    except lookups.StoppedError as error:
        raise RefusedError(503, "the look-up was given up") from error
    except (OSError, VolumeError) as error:
        raise RefusedError(503, f"the volume can't be read: {describe(error)}") from error


def _microseconds(text: str | None) -> int | None:
    if text is None:
        return None
    time = datetime.fromisoformat(text.replace(" ", "+"))  # a plus sign that was not escaped
    return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1e6)
