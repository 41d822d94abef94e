"""Images and Compose files, as far as they can be judged without a Docker engine."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from appliance import ROOT, STAGES, variables

from spearhead.settings import Settings

COMPOSE = sorted(ROOT.glob("compose*.yaml"))
FIXED = {"HEALTH_FILE", "TOKEN_KEY_FILE"}  # set in the images
INTERNAL = {"WORKER_ID", "SUPERVISOR_PID"}  # set by `spearhead up`
PACKAGES = {"xgboost": "xgboost-cpu", "prometheus_client": "prometheus-client", "starlette": "fastapi"}
UNUSED = {  # modules that a stage's imports reach only through a command that runs elsewhere
    "spearhead.cli",
    "spearhead.audit",
    "spearhead.supervisor",
    "spearhead.console",
}


def dockerfile(stage: str) -> str:
    return (ROOT / "services" / stage / "Dockerfile").read_text()


def declared(stage: str) -> set[str]:
    """Distributions that the image of a stage asks for by name, without those that they bring."""
    layers = re.findall(r"--requirement requirements/(\S+)\.txt", dockerfile(stage))
    names: set[str] = set()
    for layer in layers:
        text = (ROOT / "requirements" / f"{layer.replace('${MODEL}', 'model')}.in").read_text()
        names |= {line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")}
    return names


def source(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.exists()), None)


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports anywhere in it, later ones included; not those for type checkers only."""
    tree = ast.parse(path.read_text())
    typing_only = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def reached(stage: str) -> set[str]:
    """Everything that a stage's modules import, directly or through others of ours."""
    folder = ROOT / "services" / stage
    todo = [f"services.{stage}.{path.stem}" for path in folder.glob("*.py")]
    seen: set[str] = set()
    while todo:
        module = todo.pop()
        path = source(module)
        if module in seen or path is None or module in UNUSED:
            continue
        seen.add(module)
        todo += [name for name in imports(path) if name.startswith(("spearhead", "services"))]
        seen |= {name for name in imports(path) if not name.startswith(("spearhead", "services"))}
    return seen


@pytest.mark.parametrize("stage", STAGES)
def test_an_image_has_what_its_stage_imports(stage: str) -> None:
    tops = {name.split(".")[0] for name in reached(stage)} - {"spearhead", "services", "__future__"}
    needed = {PACKAGES.get(name, name.replace("_", "-")) for name in tops if name not in sys.stdlib_module_names}
    assert needed
    assert needed <= declared(stage)


def test_the_images_share_their_first_layers() -> None:
    """Up to and with requirements/core.txt, word for word."""
    ends = {
        stage: dockerfile(stage).index("requirements/core.txt\n", dockerfile(stage).index("pip ")) for stage in STAGES
    }
    assert len({dockerfile(stage)[: ends[stage]] for stage in STAGES}) == 1


@pytest.mark.parametrize("stage", STAGES)
def test_an_image_is_built_as_it_should_be(stage: str) -> None:
    text = dockerfile(stage)
    assert text.startswith("ARG BASE_IMAGE=python:3.11-slim-bookworm\n")  # so no syntax line, which would be fetched
    assert text.count("pip install") == text.count("pip install --require-hashes")
    assert "\nUSER 10001:10001\n" in text
    assert re.findall(r"^COPY services/(\S+) ", text, re.MULTILINE) == ["__init__.py", stage]


@pytest.mark.parametrize("layer", ["core", "tables", "model", "model-gpu", "plots", "web"])
def test_requirements_are_pinned_and_hashed(layer: str) -> None:
    text = (ROOT / "requirements" / f"{layer}.txt").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    assert lines
    for line in lines:
        assert re.match(r"\S+==\S+\s+--hash=sha256:", line), line


def test_both_kinds_of_xgboost_are_the_same_release() -> None:
    releases = {
        re.search(r"^xgboost(?:-cpu)?==(\S+)", (ROOT / "requirements" / f"{layer}.txt").read_text(), re.MULTILINE)[1]  # type: ignore[index]
        for layer in ("model", "model-gpu")
    }
    assert len(releases) == 1


def test_what_compose_takes_is_explained() -> None:
    listed = set(re.findall(r"^#? ?([A-Z][A-Z0-9_]*)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert variables(*COMPOSE) <= listed


def test_every_setting_reaches_the_containers() -> None:
    assert {name.upper() for name in Settings.model_fields} <= variables(*COMPOSE) | FIXED | INTERNAL


def test_secrets_are_in_no_environment() -> None:
    text = (ROOT / "compose.yaml").read_text()
    for name in ("TOKEN_KEY", "API_TOKEN"):
        assert re.findall(rf".*\${{{name}[:}}].*", text) == [f"      {name}=${{{name}:-}}"]
