"""What is read: each answer is bytes made once for a snapshot. The response models document and test them."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, WebSocket
from starlette.responses import JSONResponse, Response

from services.api import exporter, schemas
from services.api.context import Context
from services.api.live import SECTIONS, Hub
from services.api.snapshot import assess

router = APIRouter()
NO_STORE: Final = {"Cache-Control": "no-store"}
SCRAPE_SECONDS: Final = 2.0  # for the fresh look that a scrape waits for


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


def _answer(request: Request, name: str) -> Response:
    return Response(_context(request).answers().bytes(name), media_type="application/json", headers=NO_STORE)


@router.get("/api/business/metrics", tags=["business"], response_model=schemas.BusinessMetrics)
async def business_metrics(request: Request) -> Response:
    """Everything the business tab needs: the 17 KPIs, distributions, signals, concentration."""
    return _answer(request, "business")


@router.get("/api/dashboard", tags=["pipeline"], response_model=schemas.Dashboard)
async def dashboard(request: Request) -> Response:
    """How the pipeline itself is doing."""
    return _answer(request, "dashboard")


@router.get("/api/backlog/status", tags=["pipeline"], response_model=schemas.BacklogStatus)
async def backlog_status(request: Request) -> Response:
    """Rows that wait in each queue."""
    return _answer(request, "backlog")


@router.get("/api/backlog/pressure", tags=["pipeline"], response_model=schemas.BacklogPressure)
async def backlog_pressure(request: Request) -> Response:
    """Backlogs against their thresholds, with alerts and what to do."""
    return _answer(request, "pressure")


@router.get("/api/history", tags=["pipeline"], response_model=schemas.History)
async def history(request: Request) -> Response:
    """The last ten minutes by the second, as columns, since this API process started."""
    return _answer(request, "history")


@router.get("/api/model", tags=["model"], response_model=schemas.ModelDetails)
async def model(request: Request) -> Response:
    """The model in service, its evaluation, and the versions before it."""
    return _answer(request, "model_details")


@router.get("/healthz", tags=["health"], response_model=schemas.Health)
async def healthz() -> Response:
    """Whether this process answers."""
    return JSONResponse({"status": "alive"}, headers=NO_STORE)


@router.get("/readyz", tags=["health"], response_model=schemas.Ready, responses={503: {"model": schemas.Ready}})
async def readyz(request: Request) -> Response:
    """Whether the volume can be read and the ledger is fresh; 503 with the reasons if not."""
    snapshot = _context(request).reader.snapshot
    ready = snapshot.readable and snapshot.ledger is not None and not snapshot.stale
    content = {"ready": ready, "reasons": [] if ready else list(assess(snapshot).reasons)}
    return JSONResponse(content, 200 if ready else 503, NO_STORE)


@router.get(
    "/metrics",
    tags=["health"],
    response_class=Response,
    responses={
        200: {
            "content": {
                "text/plain": {"schema": {"type": "string"}},
                "application/openmetrics-text": {"schema": {"type": "string"}},
            }
        }
    },
)
async def metrics(request: Request) -> Response:
    """Prometheus text, or OpenMetrics when asked for.

    Each scrape waits for a look at the volume that began after it: counters never go back, whichever process answers.
    """
    context = _context(request)
    snapshot = await asyncio.to_thread(context.reader.fresh, SCRAPE_SECONDS)
    body, content_type = exporter.exposition(snapshot, context.settings, request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": content_type, **NO_STORE})


@router.websocket("/ws/metrics")
async def ws_metrics(socket: WebSocket, include: Annotated[str, Query()] = "") -> None:
    """A message a second; ``include`` names SECTIONS to add, separated by commas."""
    hub: Hub = socket.app.state.hub
    await hub.serve(socket, {name for name in include.split(",") if name in SECTIONS})
