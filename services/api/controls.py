"""Orders of an operator: start, stop, reset, throttle, priority. Each needs the token and is audited."""

from __future__ import annotations

import asyncio
import fcntl
import hmac
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.responses import JSONResponse, Response

from services.api import schemas
from services.api.context import Context
from services.api.infrastructure import rate_value
from spearhead.control import Control, Priority, read_control, write_control
from spearhead.log import LogFile
from spearhead.runner import describe, iso_now
from spearhead.settings import Settings, parse_rate
from spearhead.volume import Volume, VolumeError

AUDIT_BYTES: Final = 16 * 1024**2
PRIORITIES: Final[tuple[Priority, ...]] = ("inference", "training", "balanced")
_bearer = HTTPBearer(auto_error=False, description="The API_TOKEN of the settings")
_UNUSABLE = (OSError, VolumeError, msgspec.DecodeError)


class RefusedError(Exception):
    """An order that is not carried out: the HTTP status and why."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status = status


async def refuse(request: Request, error: Exception) -> Response:
    """The contract's shape of a refusal."""
    assert isinstance(error, RefusedError)
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(error.status)
    return JSONResponse({"success": False, "error": str(error)}, error.status, headers)


def authorised(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Context:
    """The context, for who shows the token. Without a configured one nobody may: 403."""
    context: Context = request.app.state.context
    token = context.settings.api_token
    if token is None:
        raise RefusedError(403, "control is closed: set API_TOKEN and restart the api")
    given = credentials.credentials if credentials else ""
    if not hmac.compare_digest(given.encode(), token.get_secret_value().encode()):
        client = request.client.host if request.client else None
        context.log.warning("wrong token", path=request.url.path, client=client)
        raise RefusedError(401, "the bearer token is missing or wrong")
    return context


Authorised = Annotated[Context, Depends(authorised)]
_WORDS: Final = {
    400: "A bad value",
    401: "The token is missing or wrong",
    403: "No token is configured",
    404: "It is not there",
    409: "It already is so, or is being done",
    413: "Too large",
    415: "Not a format that is read",
    503: "The volume can't be written",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": schemas.Refusal, "description": _WORDS[status]} for status in statuses}


router = APIRouter(prefix="/api/control", tags=["control"], responses=refusals(401, 403, 503))


@router.post("/start", response_model=schemas.Done, response_model_exclude_none=True)
async def start(request: Request, context: Authorised) -> dict[str, Any]:
    """Let the stages work. It is no error if they do."""
    await _order(request, context, "start", None, lambda old: _changed(old, running=True))
    return {"success": True, "message": "the stages are working", "running": True}


@router.post("/stop", response_model=schemas.Done, response_model_exclude_none=True, responses=refusals(409))
async def stop(request: Request, context: Authorised) -> dict[str, Any]:
    """Idle the stages; nothing is lost. 409 if they are stopped already."""

    def change(old: Control) -> Control:
        if not old.running:
            raise RefusedError(409, "the pipeline is stopped already")
        return _changed(old, running=False)

    await _order(request, context, "stop", None, change)
    return {"success": True, "message": "the stages are idle", "running": False}


@router.post("/reset", response_model=schemas.Done, response_model_exclude_none=True)
async def reset(request: Request, context: Authorised) -> dict[str, Any]:
    """Begin anew: totals, charts, signals, queues and histories are forgotten, models stay."""
    epoch = await asyncio.to_thread(_reset, context, _client(request))
    return {"success": True, "message": f"epoch {epoch} has begun", "epoch": epoch}


@router.get("/throttle", response_model=schemas.Throttle)
async def get_throttle(context: Authorised) -> dict[str, Any]:
    """The rate in force, rows a second or "max"."""
    control = await asyncio.to_thread(_read, context)
    return {"success": True, "rate": rate_value(control.rate or context.settings.generation_rate)}


@router.post("/throttle", response_model=schemas.Throttle, responses=refusals(400))
async def set_throttle(request: Request, order: schemas.ThrottleOrder, context: Authorised) -> dict[str, Any]:
    """Set the rate of the generator or replay."""
    rate = _rate(order.rate)
    await _order(request, context, "throttle", rate, lambda old: _changed(old, rate=rate))
    return {"success": True, "rate": rate_value(rate)}


@router.get("/priority", response_model=schemas.PriorityDone)
async def get_priority(context: Authorised) -> dict[str, Any]:
    """Who has the right of way when cores are short."""
    control = await asyncio.to_thread(_read, context)
    return {"success": True, "priority": control.priority}


@router.post("/priority", response_model=schemas.PriorityDone, responses=refusals(400))
async def set_priority(request: Request, order: schemas.PriorityOrder, context: Authorised) -> dict[str, Any]:
    """Set who has the right of way when cores are short."""
    wanted = next((known for known in PRIORITIES if known == order.priority), None)
    if wanted is None:
        raise RefusedError(400, f"priority must be one of {', '.join(PRIORITIES)}")
    await _order(request, context, "priority", wanted, lambda old: _changed(old, priority=wanted))
    return {"success": True, "priority": wanted}


def _rate(value: Any) -> str:
    """As orders have it. Raises RefusedError."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise RefusedError(400, "rate must be a number of rows a second (0 or more) or 'max'")
    try:
        rate = parse_rate(str(value))
    except ValueError as error:
        raise RefusedError(400, str(error)) from error
    return "max" if rate == float("inf") else f"{rate:.15g}"


def _changed(old: Control, **changes: Any) -> Control:
    return msgspec.structs.replace(old, **changes)


def _client(request: Request) -> str | None:
    return request.client.host if request.client else None


async def _order(
    request: Request, context: Context, action: str, value: Any, change: Callable[[Control], Control]
) -> None:
    await asyncio.to_thread(_carry_out, context, action, value, change, _client(request))


def _carry_out(
    context: Context, action: str, value: Any, change: Callable[[Control], Control], client: str | None
) -> None:
    """Change the orders, and write down who did. Raises RefusedError: 503 if the volume can't take it."""
    volume = context.volume
    with _told(context, action, value, client), _alone(volume):
        write_control(volume, change(_orders_or_default(volume)))


def _orders_or_default(volume: Volume) -> Control:
    """The orders in force. Damaged ones are nobody's order any more: the next order mends the file."""
    try:
        return read_control(volume)
    except msgspec.DecodeError:
        return Control()


def _reset(context: Context, client: str | None) -> int:
    with _told(context, "reset", None, client):
        return context.volume.raise_epoch()


def _read(context: Context) -> Control:
    try:
        return read_control(context.volume)
    except _UNUSABLE as error:
        raise RefusedError(503, f"the orders can't be read: {describe(error)}") from error


@contextmanager
def _told(context: Context, action: str, value: Any, client: str | None) -> Iterator[None]:
    """Write to the audit log what became of an order. A failure of the volume becomes a refusal."""
    try:
        yield
        _audit(context.volume, context.settings, action, value, client, "done")
    except RefusedError as error:
        _audit(context.volume, context.settings, action, value, client, f"refused: {error}")
        raise
    except _UNUSABLE as error:
        context.log.error("order failed", action=action, reason=describe(error))
        raise RefusedError(503, f"the volume can't take the order: {describe(error)}") from error
    context.log.info("order", action=action, value=value, client=client)


def _audit(volume: Volume, settings: Settings, action: str, value: Any, client: str | None, outcome: str) -> None:
    """One line, on stable storage where the settings ask for it. Raises OSError."""
    line = {"time": iso_now(), "action": action, "value": value, "client": client, "outcome": outcome}
    path = volume.logs / "audit.jsonl"
    LogFile(path, AUDIT_BYTES).write(msgspec.json.encode(line) + b"\n")
    if settings.fsync and path.exists():
        volume.files.sync_file(path)


@contextmanager
def _alone(volume: Volume) -> Iterator[None]:
    """Orders are read, changed and written by one at a time, so that none of two at once is lost."""
    descriptor = os.open(volume.control / ".orders.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
