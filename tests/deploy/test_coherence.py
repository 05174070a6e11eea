"""The manifests fit the server that they run, and one another."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.helpers.deploy.manifests import DEPLOY, Manifest, environment, everything, pod_spec, rendered, servers
from tests.helpers.service.scraping import families, server_with_metrics
from tests.helpers.service.toy_model import ToyModel
from tlcli.service.settings.server_settings import ServerSettings
from tlcli.service.settings.sources import CONFIG_VARIABLE, PREFIX, configure

ROOT = DEPLOY.parent
ALL = everything()
SERVERS = servers()
CLOSING_S = 5
"""Beyond what may be in flight: connections are closed, and the process ends."""


def settings(pod: Manifest) -> ServerSettings:
    return configure({}, environment(pod)).settings


def test_our_server_runs_in_each_place() -> None:
    assert SERVERS.keys() == {"kubernetes/base Deployment", "kubernetes/gpu Deployment", "kserve/tlcli.yaml InferenceService"}


@pytest.mark.parametrize("name", SERVERS)
def test_its_variables_are_settings(name: str) -> None:
    ours = {key: value for key, value in environment(SERVERS[name]).items() if key.startswith(PREFIX)}
    overrides = configure({}, ours).overrides
    assert len(overrides) == len(ours) > 5
    assert CONFIG_VARIABLE not in ours
    assert len(environment(SERVERS[name])) == len(SERVERS[name]["containers"][0]["env"]), "a variable stands twice"


@pytest.mark.parametrize("name", SERVERS)
def test_it_has_the_time_to_end(name: str) -> None:
    pod = SERVERS[name]
    told = settings(pod)
    assert told.pre_stop_s > 0, "something stands in front"
    assert pod["terminationGracePeriodSeconds"] >= told.pre_stop_s + told.grace_s + CLOSING_S


@pytest.mark.parametrize("name", SERVERS)
def test_ports_and_probes_are_the_servers(name: str) -> None:
    pod = SERVERS[name]
    (container,) = pod["containers"]
    told = settings(pod)
    assert [one["containerPort"] for one in container["ports"]] == [told.port, told.metrics_port]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"] == {"port": told.port}
    assert (told.host, told.metrics_host) == ("0.0.0.0", "0.0.0.0")


@pytest.mark.parametrize("name", SERVERS)
def test_models_are_where_it_looks(name: str) -> None:
    pod = SERVERS[name]
    (container,) = pod["containers"]
    models = str(settings(pod).models)
    if "STORAGE_URI" in environment(pod):
        assert models == "/mnt/models"
        return
    (mount,) = [one for one in container["volumeMounts"] if one["mountPath"] == models]
    assert mount["readOnly"]
    (volume,) = [one for one in pod["volumes"] if one["name"] == mount["name"]]
    assert volume["persistentVolumeClaim"]["claimName"] == ALL["kubernetes/base PersistentVolumeClaim"]["metadata"]["name"]


PODS = {name: pod for name, one in ALL.items() if (pod := pod_spec(one)) is not None}


@pytest.mark.parametrize("name", PODS)
def test_every_pod_is_as_the_image_is_made_for(name: str) -> None:
    """Nobody's rights, nothing written but where a volume is, none of the cluster's variables."""
    pod = PODS[name]
    assert pod["enableServiceLinks"] is False
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    volumes = {one["name"] for one in pod["volumes"]}
    for container in pod["containers"]:
        secured = container["securityContext"]
        assert secured == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        assert {one["name"] for one in container["volumeMounts"]} == volumes
        assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", PODS)
def test_images_are_of_this_version(name: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    for container in PODS[name]["containers"]:
        image, _, tag = container["image"].partition(":")
        assert image in ("tlcli-serve", "tlcli-train")
        assert tag in (version, f"{version}-cpu")


@pytest.mark.parametrize("folder", ["base", "gpu"])
def test_selectors_find_the_pods(folder: str) -> None:
    deployment, service, budget = (ALL[f"kubernetes/{folder} {kind}"] for kind in ("Deployment", "Service", "PodDisruptionBudget"))
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert (
        labels == deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == budget["spec"]["selector"]["matchLabels"]
    )
    assert labels == deployment["spec"]["template"]["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"]
    assert service["spec"]["clusterIP"] == "None"
    ports = {one["name"]: one["containerPort"] for one in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]}
    assert {one["targetPort"]: one["port"] for one in service["spec"]["ports"]} == {"grpc": ports["grpc"]}
    assert deployment["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(ports["metrics"])
    assert not service["metadata"]["name"].startswith("tlcli-serve"), "other pods of the image would read its variables as settings"


def test_with_gpus_a_pod_has_one_and_needs_it() -> None:
    pod = SERVERS["kubernetes/gpu Deployment"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert settings(pod).device == "cuda"
    assert not pod["containers"][0]["image"].endswith("-cpu")


def test_the_autoscaler_asks_for_what_the_server_tells(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scaled, deployment = ALL["kubernetes/autoscaling ScaledObject"], ALL["kubernetes/base Deployment"]
    assert scaled["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    asked = set(re.findall(r"\btlcli_\w+", query))
    ToyModel.make(seed=1).save(tmp_path / "toy/1/model.onnx", "toy")
    with server_with_metrics(tmp_path, caplog) as (_, metrics_port):
        told = {one.name: one for one in families(metrics_port)}
    assert asked == {"tlcli_queue_length"} <= told.keys()
    assert told["tlcli_queue_length"].type == "gauge"
    (pods,) = re.findall(r'pod=~"([^"]*)"', query)
    assert re.fullmatch(pods, f"{deployment['metadata']['name']}-6d4cf56db6-x2x7q")
    cpu = deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"]
    assert cpu, "a share of what is requested is what it scales by"


def test_what_is_put_together_by_hand_is_whole(tmp_path: Path) -> None:
    """Both, with GPUs and scaled: as docs/deploying.md has it."""
    (tmp_path / "deploy").symlink_to(DEPLOY)
    (tmp_path / "kustomization.yaml").write_text(
        "resources: [deploy/kubernetes/gpu]\ncomponents: [deploy/kubernetes/autoscaling]\nnamespace: models\n"
        "images: [{name: tlcli-serve, newName: registry.example/tlcli-serve, newTag: 1.2.3}]\n"
    )
    found = {one["kind"]: one for one in rendered(tmp_path)}
    assert found.keys() == {"Deployment", "PersistentVolumeClaim", "PodDisruptionBudget", "ScaledObject", "Service"}
    assert {one["metadata"]["namespace"] for one in found.values()} == {"models"}
    assert found["Deployment"]["spec"]["template"]["spec"]["containers"][0]["image"] == "registry.example/tlcli-serve:1.2.3"
