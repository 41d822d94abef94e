"""The appliance as a user starts it: a clean copy of the repository, ``docker compose``, its own project and volume."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from processes import wait_until

from spearhead.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("generator", "prep", "train", "inference", "api")
UNAVAILABLE = ("grafana",)  # left out by name: its image can't be had without a registry
VARIABLE = re.compile(r"\$\{([A-Z][A-Z0-9_]*)")
TAG = "test"


def checkout(target: Path) -> Path:
    """A copy of what git knows or would know, so neither ``.env`` nor anything that was built."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, listed):
        source = ROOT / name
        if source.is_file():
            copy = target / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
            copy.chmod(source.stat().st_mode & 0o777)
    return target


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def variables(*paths: Path) -> set[str]:
    """Names of the variables that Compose files take."""
    return {name for path in paths for name in VARIABLE.findall(path.read_text())}


class Appliance:
    """One Compose project. ``environment`` has nothing but what keeps it apart from others on this host."""

    def __init__(self, folder: Path, project: str) -> None:
        self.root = checkout(folder / "spearhead")
        self.volume = folder / "flashblade"
        self.volume.mkdir()
        names = variables(*ROOT.glob("compose*.yaml")) | {name.upper() for name in Settings.model_fields}
        keep = {name: value for name, value in os.environ.items() if name == "BUILD_CA_FILE" or name not in names}
        ports = {name: str(free_port()) for name in names if name == "PORT" or name.endswith("_PORT")}
        self.port = int(ports["PORT"])
        self.environment = keep | ports | {
            "COMPOSE_PROJECT_NAME": project,
            "COMPOSE_FILE": ":".join(map(str, self._files(folder))),
            "FLASHBLADE_PATH": str(self.volume),
            "SPEARHEAD_VERSION": TAG,
        }  # fmt: skip

    def _files(self, folder: Path) -> list[Path]:
        """``compose.yaml``, and a file that takes out the services whose images can't be had."""
        compose = self.root / "compose.yaml"
        absent = [name for name in UNAVAILABLE if f"\n  {name}:\n" in compose.read_text()]
        if not absent:
            return [compose]
        without = folder / "without.yaml"
        without.write_text("services:\n" + "".join(f"  {name}: {{profiles: [unavailable]}}\n" for name in absent))
        return [compose, without]

    def shell(self, command: str, seconds: float = 600) -> str:
        """Standard output of a command in the checkout; fails with everything it said if it fails."""
        done = subprocess.run(
            ["sh", "-c", command], cwd=self.root, env=self.environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def compose(self, arguments: str, seconds: float = 600) -> str:
        return self.shell(f"docker compose {arguments}", seconds)

    def containers(self, service: str = "", *, everything: bool = False) -> list[str]:
        """Ids of the containers that run, or of all there are."""
        return self.compose(f"ps --quiet {'--all' if everything else ''} {service}").split()

    def inspect(self, ids: Iterable[str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.shell(f"docker inspect {' '.join(ids)}"))
        return found

    def get(self, path: str) -> Any:
        """The JSON that the API answers, or None while it doesn't."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return json.load(answer)
        except OSError:  # refused, reset, timed out: it is just being started
            return None

    def ask(self, service: str, path: str) -> str:
        """What Prometheus or Alertmanager answers; what is only pending is left out."""
        port = self.environment[f"{service.upper()}_PORT"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            found = json.load(answer)
        alerts = found["data"]["alerts"] if isinstance(found, dict) else found
        return json.dumps([one for one in alerts if one.get("state") != "pending"], separators=(",", ":"))

    def post(self, path: str, body: Mapping[str, object], token: str) -> int:
        """The HTTP status."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(),
            {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def scored(self) -> int:
        """Transactions in the ledger."""
        metrics = self.get("/api/business/metrics")
        return (metrics and metrics["transactions_analyzed"]) or 0

    def await_progress(self, what: str) -> None:
        """Until more is scored than now."""
        before = wait_until(self.scored, f"{what}: something is scored")
        wait_until(lambda: self.scored() > before, f"{what}: more than {before} is scored")

    def await_healthy(self, service: str) -> None:
        def healthy() -> bool:
            found = self.inspect(self.containers(service))
            return bool(found) and all(container["State"]["Health"]["Status"] == "healthy" for container in found)

        wait_until(healthy, f"{service} is healthy")

    def build(self) -> float:
        """Seconds that it took."""
        began = time.monotonic()
        self.compose("build --quiet", 1800)
        return time.monotonic() - began

    def end(self) -> None:
        """Everything away, files of the stages' user too."""
        self.compose("down --volumes --remove-orphans --timeout 20")
        clean = f"docker run --rm --user 0:0 --entrypoint find -v '{self.volume}:/v' spearhead/generator:{TAG}"
        self.shell(f"{clean} /v -mindepth 1 -delete")
