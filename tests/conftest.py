"""What tests share: an environment without settings, a prepared volume, the real input, and pipelines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import Up

from spearhead.files import Files
from spearhead.settings import Settings
from spearhead.volume import Volume

SLICE = Path(__file__).parent.parent.parent / "shared" / "data" / "sparkov_slice.csv"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A developer's own settings must not decide whether tests pass; the token key is not the developer's either."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("TOKEN_KEY_FILE", str(tmp_path_factory.getbasetemp() / "token.key"))


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    """A prepared volume that does not flush to disk."""
    root = tmp_path / "volume"
    root.mkdir()
    made = Volume(root, Files(fsync=False))
    made.prepare()
    return made


@pytest.fixture
def sparkov_slice() -> Path:
    """The real input; without it, on a machine that lacks it, its tests are skipped."""
    if not SLICE.exists():
        pytest.skip(f"{SLICE} is not there")
    return SLICE


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Starts pipelines, and ends what a failed test leaves."""
    started: list[Up] = []

    def start(*options: str, root: Path | None = None, **settings: object) -> Up:
        started.append(Up(root or tmp_path / "volume", *options, **settings))
        return started[-1]

    yield start
    for pipeline in started:
        pipeline.kill()
