"""The manifests: their schemas, names that must meet, pod security, and the one source of the rules."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from monitoring import alerts

from spearhead.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "deploy" / "kubernetes"
SCHEMAS = ROOT.parent / "shared" / "schemas"
STAGES = ("api", "generator", "inference", "prep", "train")
VERSION = "1.31"  # the oldest that the manifests are checked against; the newest is checked too
Manifest = dict[str, Any]


def kustomization() -> Manifest:
    found: Manifest = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    return found


def manifests() -> list[Manifest]:
    """Everything that the kustomization lists."""
    texts = [(FOLDER / name).read_text() for name in kustomization()["resources"]]
    return [document for text in texts for document in yaml.safe_load_all(text)]


def of(kind: str) -> dict[str, Manifest]:
    return {found["metadata"]["name"]: found for found in manifests() if found["kind"] == kind}


def pod(stage: str) -> Manifest:
    found: Manifest = of("Deployment")[stage]["spec"]["template"]["spec"]
    return found


def container(stage: str) -> Manifest:
    (found,) = pod(stage)["containers"]
    return found  # type: ignore[no-any-return]


def identity(manifest: Manifest) -> str:
    return f"{manifest['kind']}-{manifest['metadata']['name']}"


EVERY_STAGE = pytest.mark.parametrize("stage", STAGES)
BUILT_IN = [found for found in manifests() if found["apiVersion"].split("/")[0] in ("v1", "apps", "networking.k8s.io")]
CUSTOM = [found for found in manifests() if found not in BUILT_IN]


def test_the_kustomization_lists_every_manifest_once() -> None:
    listed = kustomization()["resources"]
    assert sorted(listed) == sorted(path.name for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")
    names = [identity(found) for found in manifests()]
    assert len(names) == len(set(names))
    assert kustomization()["namespace"] == "spearhead" == next(iter(of("Namespace")))


@pytest.mark.parametrize("manifest", BUILT_IN, ids=identity)
@pytest.mark.parametrize("version", [VERSION, kubernetes_validate.latest_version()])
def test_built_in_kinds_are_valid(manifest: Manifest, version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("manifest", CUSTOM, ids=identity)
def test_custom_kinds_are_valid(manifest: Manifest) -> None:
    group, version = manifest["apiVersion"].split("/")
    path = SCHEMAS / f"{manifest['kind'].lower()}_{version}.json"
    if not SCHEMAS.exists():
        pytest.skip(f"{SCHEMAS} is not there")
    assert group in ("keda.sh", "monitoring.coreos.com")
    jsonschema.validate(manifest, closed(json.loads(path.read_text())))


def closed(schema: Any) -> Any:
    """The schema with unknown keys refused, as the API server prunes them."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    if isinstance(made.get("pattern"), str):  # Go's regular expressions may have flags within
        made["pattern"] = re.sub(r"^\^\(\?i\)", "(?i)^", made["pattern"])
    if isinstance(made.get("properties"), dict) and made.get("type") == "object" and len(made["properties"]) > 0:
        open_ended = made.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in made
        return made if open_ended else made | {"additionalProperties": False}
    return made


def test_one_deployment_a_stage() -> None:
    assert tuple(sorted(of("Deployment"))) == STAGES


@EVERY_STAGE
def test_pods_keep_to_the_restricted_standard(stage: str) -> None:
    security = pod(stage)["securityContext"]
    assert (security["runAsNonRoot"], security["runAsUser"], security["runAsGroup"]) == (True, 10001, 10001)
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert "fsGroup" not in security  # it would have the kubelet chown the whole volume
    assert container(stage)["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & pod(stage).keys()
    assert {kind for volume in pod(stage)["volumes"] for kind in volume if kind != "name"} == {
        "persistentVolumeClaim", "emptyDir",
    }  # fmt: skip
    labels = of("Namespace")["spearhead"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@EVERY_STAGE
def test_pods_get_nothing_from_the_cluster_that_they_do_not_need(stage: str) -> None:
    """A service's variables would be read as settings: API_PORT among them."""
    assert pod(stage)["enableServiceLinks"] is False
    assert pod(stage)["automountServiceAccountToken"] is False
    assert pod(stage)["serviceAccountName"] in of("ServiceAccount")


@EVERY_STAGE
def test_every_stage_mounts_the_root_of_the_volume_once(stage: str) -> None:
    mounts = {mount["mountPath"]: mount for mount in container(stage)["volumeMounts"]}
    assert set(mounts) == {"/mnt/flashblade", "/tmp"}
    assert "subPath" not in mounts["/mnt/flashblade"]
    claims = {volume["name"]: volume["persistentVolumeClaim"] for volume in pod(stage)["volumes"] if len(volume) == 2
              and "persistentVolumeClaim" in volume}  # fmt: skip
    assert claims[mounts["/mnt/flashblade"]["name"]] == {"claimName": "flashblade"}
    assert of("PersistentVolumeClaim")["flashblade"]["spec"]["accessModes"] == ["ReadWriteMany"]


@EVERY_STAGE
def test_labels_selectors_images_and_limits(stage: str) -> None:
    spec = of("Deployment")[stage]["spec"]
    labels = {"app.kubernetes.io/name": stage}
    assert spec["selector"]["matchLabels"] == labels == spec["template"]["metadata"]["labels"]
    assert container(stage)["image"] == f"spearhead/{stage}"
    assert (ROOT / "services" / stage / "Dockerfile").exists()
    assert container(stage)["resources"]["limits"]["memory"]
    assert "livenessProbe" in container(stage)


@EVERY_STAGE
def test_only_those_that_need_secrets_get_them(stage: str) -> None:
    given = {item["name"] for item in container(stage).get("env", ()) if "valueFrom" in item}
    assert given == {"api": {"TOKEN_KEY", "API_TOKEN"}, "generator": {"TOKEN_KEY"}}.get(stage, set())
    for item in container(stage).get("env", ()):
        if "valueFrom" in item:
            assert item["valueFrom"]["secretKeyRef"]["key"] == item["name"]
            assert f"--from-literal={item['name']}=" in (FOLDER / "README.md").read_text()


def test_a_producer_is_ended_before_the_next_begins() -> None:
    assert of("Deployment")["generator"]["spec"]["strategy"]["type"] == "Recreate"


def settings() -> dict[str, str]:
    lines = (FOLDER / "settings.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_settings_are_ours() -> None:
    assert {name.lower() for name in settings()} <= set(Settings.model_fields)
    Settings(**{name.lower(): value for name, value in settings().items()})
    names = {item["configMapRef"]["name"] for stage in STAGES for item in container(stage)["envFrom"]}
    assert names == {made["name"] for made in kustomization()["configMapGenerator"]}


def test_the_service_reaches_the_api_and_the_policy_lets_readers_in() -> None:
    (port,) = of("Service")["api"]["spec"]["ports"]
    (named,) = container("api")["ports"]
    assert (port["targetPort"], named["name"], named["containerPort"]) == ("http", "http", Settings().port)
    denied = of("NetworkPolicy")["deny-all"]["spec"]
    assert (denied["podSelector"], denied["policyTypes"]) == ({}, ["Ingress", "Egress"])
    readers = of("NetworkPolicy")["api-readers"]["spec"]
    assert readers["podSelector"]["matchLabels"] == of("Service")["api"]["spec"]["selector"]
    (peer,) = readers["ingress"][0]["from"]
    for label, value in peer["namespaceSelector"]["matchLabels"].items():
        assert f"{label}={value}" in (FOLDER / "README.md").read_text()


def test_scaled_objects_scale_deployments_that_leave_replicas_to_them() -> None:
    scaled = of("ScaledObject")
    assert set(scaled) == {"inference", "prep"}
    for name, found in scaled.items():
        assert found["spec"]["scaleTargetRef"] == {"name": name}
        assert "replicas" not in of("Deployment")[name]["spec"]
        assert all(re.fullmatch(r"\d+", trigger["metadata"]["threshold"]) for trigger in found["spec"]["triggers"])
    partitions = int(settings()["PARTITIONS"])
    assert scaled["prep"]["spec"]["maxReplicaCount"] == partitions + 1


def test_the_monitor_finds_the_service_and_its_job_is_the_rules_job() -> None:
    monitor = of("ServiceMonitor")["spearhead"]["spec"]
    service = of("Service")["api"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    (added,) = kustomization()["labels"]
    assert added["pairs"][monitor["jobLabel"]] == "spearhead"


def test_rules_are_those_of_prometheus() -> None:
    spec = importlib.util.spec_from_file_location("kubernetes_monitoring", FOLDER / "monitoring.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (FOLDER / "monitoring.yaml").read_text() == module.render()
    shipped = {
        rule["alert"]: rule
        for group in of("PrometheusRule")["spearhead"]["spec"]["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    assert shipped == {alert.name: alert.rule for alert in alerts() if alert.group != module.NOT_OURS}
