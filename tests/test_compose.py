"""The appliance in containers, as README says: start, hardening, kills, pauses, scaling, down and up again.

One project for the whole module. The tests run in this order, and the last one audits what all of them left.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest
from appliance import ROOT, STAGES, TAG, Appliance
from processes import wait_until
from sparkov import rows, write_csv

pytestmark = [pytest.mark.docker]

LAYERS_MAX_MB = 1500
START_SECONDS = 180  # what `--wait` may take on a busy machine; how long it took is printed
TOKEN_KEY, API_TOKEN = "a-token-key-that-nobody-may-see", "a-bearer-token-that-nobody-may-see"
STAGE_DOWN = '"alertname":"SpearheadStageDown"'
READ_TOKEN_KEY = "run --rm --no-deps -T --entrypoint cat generator /var/lib/spearhead/token/token.key"


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    """Built, and started with three inference replicas from a clean copy without ``.env``."""
    made = Appliance(tmp_path_factory.mktemp("appliance"), "spearhead-test")
    made.compose("down --volumes --remove-orphans --timeout 20")  # what a killed run of these tests left
    print(f"built in {made.build():.0f} s")
    try:
        began = time.monotonic()
        made.compose(f"up -d --scale inference=3 --wait --wait-timeout {START_SECONDS}")
        print(f"healthy in {time.monotonic() - began:.0f} s")
        yield made
    finally:
        made.end()


def commands() -> list[str]:
    """The commands of README's section on the appliance."""
    section = (ROOT / "README.md").read_text().split("\n## The appliance\n")[1].split("\n## ")[0]
    return [line.strip() for line in section.splitlines() if line.startswith("    ")]


def stage_logs(appliance: Appliance) -> list[str]:
    """Lines of the five stages."""
    ids = appliance.containers(" ".join(STAGES))
    return [line for container in ids for line in appliance.shell(f"docker logs {container} 2>&1").splitlines()]


def shown(appliance: Appliance) -> str:
    """All that ``docker inspect`` and the logs show of all containers."""
    return json.dumps(appliance.inspect(appliance.containers(everything=True))) + appliance.compose("logs --no-color")


def test_sizes(appliance: Appliance) -> None:
    printed = appliance.shell(f"python3 deploy/image_sizes.py {TAG}")
    print(printed)
    together = re.search(r"together\s+([\d,.]+) MB", printed)
    assert together
    assert float(together[1].replace(",", "")) < LAYERS_MAX_MB


def test_everything_is_healthy(appliance: Appliance) -> None:
    found = appliance.inspect(appliance.containers())
    services = [container["Config"]["Labels"]["com.docker.compose.service"] for container in found]
    assert services.count("inference") == 3
    assert {*STAGES} <= {*services}
    for service, container in zip(services, found, strict=True):
        if service in STAGES:
            assert container["State"]["Health"]["Status"] == "healthy"
            print(service, "started", container["State"]["StartedAt"])


def test_health_is_progress(appliance: Appliance) -> None:
    """A stage that is alive but stands still turns unhealthy, and healthy again when it goes on."""
    container = appliance.containers("train")[0]
    appliance.shell(f"docker exec {container} sh -c 'kill -STOP -1'")
    wait_until(
        lambda: appliance.inspect([container])[0]["State"]["Health"]["Status"] == "unhealthy", "train is unhealthy"
    )
    appliance.shell(f"docker exec {container} sh -c 'kill -CONT -1'")
    appliance.await_healthy("train")


def test_readme_to_the_letter(appliance: Appliance) -> None:
    """Every command there works in this order; what `curl | jq` shows is known, and grows."""
    listed = [line for line in commands() if not line.startswith("docker compose down")]
    assert listed[0] == "docker compose up -d --wait"
    assert sum("jq" in line for line in listed) >= 3
    wait_until(appliance.scored, "the first model scores")
    for line in listed:
        answer = appliance.shell(line.replace("localhost:8000", f"localhost:{appliance.port}"))
        if "jq" in line:
            assert json.loads(answer)
            assert json.loads(answer) != dict.fromkeys(json.loads(answer))
    appliance.await_progress("README's commands")


def test_nothing_is_logged_above_warning(appliance: Appliance) -> None:
    lines = stage_logs(appliance)
    assert {json.loads(line)["stage"] for line in lines} == {*STAGES}
    assert [line for line in lines if json.loads(line)["level"] in ("error", "critical")] == []


def test_every_container_is_hardened(appliance: Appliance) -> None:
    look = (
        "id -u; grep -h CapEff /proc/1/status /proc/self/status; grep NoNewPrivs /proc/self/status; "
        "for f in / /app /etc /usr/local/bin /opt /var/lib; do touch $f/w 2>/dev/null && echo written $f; done; true"
    )
    found = appliance.inspect(appliance.containers())
    for container in found:
        service = container["Config"]["Labels"]["com.docker.compose.service"]
        said = appliance.shell(f"docker exec {container['Id']} sh -c '{look}'").split("\n")
        assert said[0] != "0", service
        assert said[1:4] == ["CapEff:\t0000000000000000"] * 2 + ["NoNewPrivs:\t1"], service
        assert said[4:] == [""], service
        host = container["HostConfig"]
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert not host["CapAdd"], service
        assert not host["Privileged"], service
        assert host["Memory"] > 0, service
        assert host["PidsLimit"] > 0, service
        assert host["LogConfig"]["Config"]["max-size"], service
        for bindings in (host["PortBindings"] or {}).values():
            assert [binding["HostIp"] for binding in bindings] == ["127.0.0.1"], service


def test_the_stages_have_no_network(appliance: Appliance) -> None:
    for stage in STAGES[:-1]:
        for container in appliance.inspect(appliance.containers(stage)):
            assert list(container["NetworkSettings"]["Networks"]) == ["none"]


def test_the_init_can_do_three_things(appliance: Appliance) -> None:
    (init,) = appliance.inspect(appliance.containers("init", everything=True))
    assert init["HostConfig"]["CapDrop"] == ["ALL"]
    added = {name.removeprefix("CAP_") for name in init["HostConfig"]["CapAdd"]}
    assert added == {"CHOWN", "DAC_OVERRIDE", "FOWNER"}
    assert init["State"]["ExitCode"] == 0


def test_the_init_says_what_to_do(appliance: Appliance, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = appliance.shell("docker compose run --rm -T -e FLASHBLADE_FS=nfs init 2>&1; test $? = 1")
    assert "not on 'nfs' as FLASHBLADE_FS says: mount it at FLASHBLADE_PATH on the host, then start again." in other
    folder = tmp_path_factory.mktemp("read-only")
    run = f"docker run --rm --user 0 --cap-drop ALL --network none -v '{folder}:/mnt/flashblade:ro' --entrypoint sh"
    refused = appliance.shell(f"{run} spearhead/generator:{TAG} /usr/local/bin/init 2>&1; test $? = 1")
    assert "cannot make /mnt/flashblade/queue: mount the volume read-write;" in refused


def test_control_is_closed_without_a_token(appliance: Appliance) -> None:
    assert appliance.post("/api/control/stop", {}, "guess") == 403


@pytest.mark.parametrize("stage", STAGES)
def test_kill(appliance: Appliance, stage: str) -> None:
    victim = appliance.containers(stage)[0]
    appliance.shell(f"docker kill {victim}")
    appliance.shell(f"docker start {victim}")
    appliance.await_progress(f"after the kill of {stage}")


def test_what_dies_by_itself_is_started_again(appliance: Appliance) -> None:
    victim = appliance.containers("prep")[0]
    appliance.shell(f"docker exec {victim} sh -c 'kill -9 -1' || true")
    wait_until(lambda: appliance.inspect([victim])[0]["RestartCount"] >= 1, "prep is started again")
    appliance.await_progress("after prep died")


@pytest.mark.parametrize("stage", ["inference", "prep"])
def test_pause_past_the_lease(appliance: Appliance, stage: str) -> None:
    """Paused until the others take it for dead, then woken: it must do no harm."""
    replicas = appliance.containers(stage)
    victim, alive = replicas[0], len(replicas)
    wait_until(lambda: _replicas(appliance, stage) == alive, f"no {stage} that was killed is taken for alive any more")
    appliance.shell(f"docker pause {victim}")
    wait_until(lambda: _replicas(appliance, stage) < alive, f"{stage} is taken for dead")
    appliance.shell(f"docker unpause {victim}")
    wait_until(lambda: _replicas(appliance, stage) == alive, f"{stage} is back")
    appliance.await_healthy(stage)
    appliance.await_progress(f"after the pause of {stage}")


def _replicas(appliance: Appliance, stage: str) -> int:
    """Live workers of a stage, as the API counts them."""
    kind = {"generator": "generation", "prep": "preprocessing", "train": "training"}.get(stage, stage)
    answer = appliance.get("/api/dashboard")
    return -1 if answer is None else int(answer["pod_counts"][kind] or 0)


def test_network_disconnect(appliance: Appliance) -> None:
    """The API is cut off; scoring goes on, and is seen when the network is back."""
    container = appliance.containers("api")[0]
    (network,) = appliance.inspect([container])[0]["NetworkSettings"]["Networks"]
    before = appliance.scored()
    appliance.shell(f"docker network disconnect {network} {container}")
    assert appliance.get("/healthz") is None
    ledger = appliance.volume / "metrics" / ".metrics.json"
    wait_until(lambda: json.loads(ledger.read_bytes())["transactions_analyzed"] > before, "scoring goes on")
    appliance.shell(f"docker network connect --alias api {network} {container}")
    appliance.await_progress("after the network came back")
    appliance.await_healthy("api")


def test_scale(appliance: Appliance) -> None:
    for scale in ("inference=1", "inference=3 --scale prep=2", "inference=1 --scale prep=1"):
        appliance.compose(f"up -d --no-recreate --wait --wait-timeout {START_SECONDS} --scale {scale}")
        inference = int(scale.split("=")[1][0])
        wait_until(lambda n=inference: _replicas(appliance, "inference") == n, scale)  # type: ignore[misc]
        appliance.await_progress(scale)


def test_an_alert_fires_and_resolves(appliance: Appliance) -> None:
    """No prep is left: Prometheus says so, Alertmanager has it, and both take it back when prep is there again."""
    names = {"prometheus": "/api/v1/alerts", "alertmanager": "/api/v2/alerts"}
    appliance.compose("kill prep")
    for service, path in names.items():
        wait_until(lambda s=service, p=path: STAGE_DOWN in appliance.ask(s, p), f"{service} has the alert")  # type: ignore[misc]
    appliance.compose("start prep")
    for service, path in names.items():
        wait_until(lambda s=service, p=path: STAGE_DOWN not in appliance.ask(s, p), f"{service} took it back")  # type: ignore[misc]
    appliance.await_progress("after the alert")


def test_down_and_up_again_with_secrets_that_nobody_sees(appliance: Appliance) -> None:
    before = appliance.scored()
    appliance.compose("down --timeout 60")
    (appliance.root / ".env").write_text(f"TOKEN_KEY={TOKEN_KEY}\nAPI_TOKEN={API_TOKEN}\n")
    appliance.compose(f"up -d --wait --wait-timeout {START_SECONDS} --scale inference=2")
    wait_until(lambda: appliance.scored() > before, "it goes on where it was")
    assert appliance.post("/api/control/throttle", {"rate": "20000"}, "guess") == 401
    assert appliance.post("/api/control/throttle", {"rate": "20000"}, API_TOKEN) == 200
    given = "run --rm --no-deps -T --entrypoint cat generator /var/lib/spearhead/token/given.key"
    assert appliance.compose(given) == TOKEN_KEY
    said = shown(appliance)
    assert TOKEN_KEY not in said
    assert API_TOKEN not in said


def test_a_file_of_the_host_is_replayed(appliance: Appliance, tmp_path_factory: pytest.TempPathFactory) -> None:
    """SOURCE is a path on the host: the generator gets that file alone, read-only."""
    folder = tmp_path_factory.mktemp("replay")
    other = Appliance(folder, "spearhead-test-replay")
    source = write_csv(folder / "some rows.csv", rows(500))
    source.chmod(0o644)
    other.environment["SOURCE"] = str(source)
    try:
        other.compose(f"up -d --wait --wait-timeout {START_SECONDS} generator")
        report = wait_until(lambda: _verify(other)["published"] and _verify(other), "the file is published")
        assert report["published"] == 500
        (container,) = other.inspect(other.containers("generator"))
        (mount,) = [mount for mount in container["Mounts"] if mount["Destination"].startswith("/replay")]
        assert (mount["Source"], mount["RW"]) == (str(source), False)
        key = other.compose(READ_TOKEN_KEY).strip()  # made at the first use
        assert len(key) == 64
        assert key not in shown(other)
        other.compose(f"up -d --wait --wait-timeout {START_SECONDS} --force-recreate generator")
        assert other.compose(READ_TOKEN_KEY).strip() == key
    finally:
        other.end()


def test_nothing_is_lost_and_nothing_doubled(appliance: Appliance) -> None:
    """After all of the above: stop the traffic, let the queues drain, audit the volume."""
    appliance.compose("stop generator")
    names = ("raw_transactions", "features_ready", "inference_results")

    def drained() -> bool:
        backlog = appliance.get("/api/backlog/status")
        return backlog is not None and not any(backlog[name] for name in names)

    wait_until(drained, "the queues are empty")
    report = _verify(appliance)
    print(report)
    assert report["ok"]
    assert report["settled"]
    assert report["waiting"] == report["lost"] == report["duplicated"] == report["dead"] == 0
    assert report["scored"] == report["published"] > 0


def _verify(appliance: Appliance) -> dict[str, int]:
    command = "run --rm --no-deps -T generator python -m spearhead verify --json"
    report: dict[str, int] = json.loads(appliance.compose(command))
    return report


def test_the_nfs_override_replaces_every_mount(appliance: Appliance) -> None:
    project = _configuration(appliance, "compose.nfs.yaml", NFS_SERVER="192.0.2.1")
    for service in ("init", *STAGES):
        mounts = project["services"][service]["volumes"]
        (volume,) = [mount for mount in mounts if mount["target"] == "/mnt/flashblade"]
        assert (volume["type"], volume["source"]) == ("volume", "flashblade")
    options = project["volumes"]["flashblade"]["driver_opts"]["o"].split(",")
    assert {"addr=192.0.2.1", "nfsvers=4.1", "hard", "acdirmin=0", "acdirmax=0", "lookupcache=positive"} <= {*options}


def test_the_gpu_override_gives_devices_to_two_stages(appliance: Appliance) -> None:
    services = _configuration(appliance, "compose.gpu.yaml")["services"]
    with_gpu = {name for name, service in services.items() if "deploy" in service}
    assert with_gpu == {"train", "inference"}
    for name in with_gpu:
        assert services[name]["environment"]["DEVICE"] == "cuda"
        assert services[name]["build"]["args"]["MODEL"] == "model-gpu"


def _configuration(appliance: Appliance, override: str, **environment: str) -> dict[str, dict[str, dict]]:  # type: ignore[type-arg]
    given = " ".join(f"{name}={value}" for name, value in environment.items())
    answer: dict[str, dict[str, dict]] = json.loads(  # type: ignore[type-arg]
        appliance.shell(f"{given} docker compose -f compose.yaml -f {override} config --format json")
    )
    return answer
