"""Made-up requests over the whole OpenAPI: never a server error, never an answer that is not documented."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from ledgers import Scorer
from processes import wait_until
from test_api import beat_all
from test_api_server import Server

from spearhead.volume import Volume

schemathesis = pytest.importorskip("schemathesis")
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = (content_type_conformance, response_schema_conformance, status_code_conformance)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("volume")
    volume = Volume(root)
    volume.prepare()
    Scorer(volume).score(500)
    beat_all(volume)
    started = Server(root, api_workers=1, api_token="secret", token_key="a key for tests only")
    wait_until(started.alive, "the api answers")
    yield started
    started.kill()


def operations(server: Server) -> list[Any]:
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
    return [result.ok() for result in schema.get_all_operations()]


@pytest.mark.parametrize("token", ["secret", "wrong"])
def test_no_request_breaks_it(server: Server, token: str) -> None:
    tried = 0
    for operation in operations(server):

        @given(case=operation.as_strategy())
        @settings(max_examples=10, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def check(case: Any) -> None:
            response = case.call(headers={"Authorization": f"Bearer {token}"})
            assert response.status_code < 500 or response.status_code == 503  # 503 is documented, and meant
            case.validate_response(response, checks=list(CHECKS))

        check()
        tried += 1
    assert tried > 15
    assert server.get("/healthz") == {"status": "alive"}
