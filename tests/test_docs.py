"""Documentation is held against the code: the layer table, the commands, the links, who imports whom."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from monitoring import alerts

from spearhead import drift
from spearhead.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def modules() -> list[str]:
    files = [*ROOT.glob("spearhead/*.py"), *ROOT.glob("services/*/*.py")]
    return sorted(str(file.relative_to(ROOT)) for file in files if not file.name.startswith("__"))


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_the_layer_table_lists_every_module_once() -> None:
    listed = re.findall(
        r"^\| [^|]*\| `([a-z_/]+\.py)` \|", (ROOT / "docs" / "ARCHITECTURE.md").read_text(), re.MULTILINE
    )
    assert sorted(listed) == modules()


def test_what_is_shared_knows_no_service() -> None:
    for file in ROOT.glob("spearhead/*.py"):
        assert not [name for name in imports(file) if name.split(".")[0] == "services"], file


def test_no_service_knows_another() -> None:
    for file in ROOT.glob("services/*/*.py"):
        own = f"services.{file.parent.name}"
        foreign = [n for n in imports(file) if n.startswith("services.") and n != own and not n.startswith(f"{own}.")]
        assert not foreign, file


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_readme_names_every_command_and_option() -> None:
    text = (ROOT / "README.md").read_text()
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert f"`{name}" in text, name
        for parameter in command.params:
            option = max(parameter.opts, key=len)
            assert option in text, f"{name} {option}"


def test_limits_of_drift_are_told_as_they_are_judged() -> None:
    """A ratio is judged by the end of its interval that is nearer to 1: in the answers, in alerts and on the page."""
    text = " ".join((ROOT / "docs" / "OPERATIONS.md").read_text().split())
    assert f"warning from {drift.WARN:g}, alarm from {drift.ALARM:g}" in text
    assert f"warning beyond a factor of {drift.RATIO_WARN:g}, alarm beyond {drift.RATIO_ALARM:g}" in text
    rules = {alert.name: alert.expr for alert in alerts()}
    assert re.findall(r"> ([\d.]+)", rules["SpearheadDrift"]) == [f"{drift.ALARM:g}"] * 2
    ratios = [("low", f"> {drift.RATIO_ALARM:g}"), ("high", f"< 1 / {drift.RATIO_ALARM:g}")]
    for name in ("SpearheadFraudRateShift", "SpearheadCalibrationOff"):
        assert re.findall(r"_(low|high)\) ([<>] (?:1 / )?[\d.]+)", rules[name]) == ratios


def test_readme_names_every_make_target_of_a_newcomer() -> None:
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE):
        if target != "help":
            assert f"make {target}" in text, target


def test_every_module_says_what_it_is_for() -> None:
    for module in modules():
        assert ast.get_docstring(ast.parse((ROOT / module).read_text())), module
