"""The FastAPI application of one process: its reader, its routes, its errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.staticfiles import StaticFiles
from starlette.responses import JSONResponse, Response

from services.api import controls, examples, pages, reads, schemas, writes
from services.api.context import Context
from services.api.live import Hub
from services.api.reader import Reader
from services.api.tally import Tally
from spearhead import __version__
from spearhead.settings import Settings
from spearhead.volume import Volume

STATIC: Final = Path(__file__).parent / "static"
DESCRIPTION: Final = (
    "Live figures of the fraud pipeline. What is not known is null or an empty list, never a placeholder; "
    "`status` says why. Times are ISO 8601 UTC, rates are fractions unless a name says percent."
)
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "frame-ancestors 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def create_app(settings: Settings, volume: Volume, log: structlog.BoundLogger, reasons: Tally | None = None) -> FastAPI:
    """An application that reads ``volume``; the reader runs as long as the application does.

    ``reasons`` counts the flagged transactions whose reasons were computed when they were looked up.
    """
    counted = reasons or Tally()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        context = Context(settings, volume, Reader(volume, settings, log), log, counted.add)
        context.start()
        await asyncio.to_thread(context.reader.fresh, 5.0)
        hub = Hub(context.answers)
        app.state.context, app.state.hub = context, hub
        ticking = asyncio.create_task(hub.run())
        try:
            yield
        finally:
            ticking.cancel()
            hub.close()
            await asyncio.to_thread(context.close)

    app = Api(
        title="Spearhead",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(reads.router)
    app.include_router(controls.router)
    app.include_router(writes.router)
    app.include_router(pages.router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_exception_handler(Exception, _failed)
    app.add_exception_handler(controls.RefusedError, controls.refuse)
    app.add_middleware(SecurityHeaders)
    return app


class Api(FastAPI):
    """FastAPI, whose OpenAPI document has examples of real answers."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = super().openapi()
            examples.add_to(self.openapi_schema)
            components = self.openapi_schema["components"]["schemas"]
            for shape in (schemas.TransactionIn, schemas.LabelIn):
                components[shape.__name__] = shape.model_json_schema()
        return self.openapi_schema


async def _failed(request: Request, error: Exception) -> Response:
    """A fault of ours: told in the contract's shape, and logged with its traceback by the server."""
    return JSONResponse({"success": False, "error": f"internal error: {type(error).__name__}"}, 500)


class SecurityHeaders:
    """Adds HEADERS to every HTTP answer; plain ASGI, so that it costs next to nothing."""

    def __init__(self, app) -> None:  # type: ignore[no-untyped-def]
        self._app = app
        self._headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]

    async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message) -> None:  # type: ignore[no-untyped-def]
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *self._headers]
            await send(message)

        await self._app(scope, receive, send_with_headers)
