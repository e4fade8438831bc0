"""The cluster recipes, held against what is installed: Ray's schema and options, and this program's own.

None of this shows that a cluster comes up; only that no option, field or version is made up or out of date.
"""

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml

from personlab.cli import app
from personlab.params import Params

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/cluster.md"

# KubeRay's reference of ray.io/v1: the fields there are.
RAY_JOB = {
    *("activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint"),
    *("entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata"),
    *("rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig"),
    *("submitterPodTemplate", "suspend", "ttlSecondsAfterFinished"),
}
RAY_CLUSTER = {
    *("authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions"),
    *("headGroupSpec", "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "upgradeStrategy"),
    "workerGroupSpecs",
}
HEAD = {"enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template"}
WORKERS = {
    *("groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts"),
    *("rayStartParams", "replicas", "resources", "scaleStrategy", "suspend", "template"),
}


@pytest.fixture(scope="module")
def launcher() -> dict[str, Any]:
    return _load("ray-up.yaml")


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return _load("rayjob.yaml")


def _load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / name).read_text())
    return loaded


def _ray_version() -> str:
    found = re.search(r"^ray==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert found
    return found[1]


def _command(line: str) -> Mapping[str, Any]:
    """The options of a `ray start` or `ray job submit` line, as the installed Ray reads them."""
    from ray.scripts.scripts import cli

    command: Any = cli
    words = shlex.split(line)
    assert words.pop(0) == "ray"
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    return dict(command.make_context(command.name, words).params)


def _pods(job: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Group and pod template of the head and of all worker groups."""
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group, group["template"]["spec"]


# --- Ray's cluster launcher ---------------------------------------------------------------------------------


def test_the_launcher_s_file_fits_ray_s_schema(launcher: dict[str, Any]) -> None:
    schema = json.loads(files("ray.autoscaler").joinpath("ray-schema.json").read_text())
    jsonschema.validate(launcher, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(launcher | {"file_mount": {}}, schema)


def test_the_launcher_s_nodes_are_all_there_from_the_start(launcher: dict[str, Any]) -> None:
    nodes = dict(launcher["available_node_types"])
    head = nodes.pop(launcher["head_node_type"])
    assert head["resources"]["CPU"] == 0
    assert all(node["min_workers"] == node["max_workers"] for node in nodes.values())
    assert sum(node["max_workers"] for node in nodes.values()) == launcher["max_workers"]


def test_the_launcher_s_start_lines_are_options_of_ray(launcher: dict[str, Any]) -> None:
    head = _command(launcher["head_start_ray_commands"][-1])
    worker = _command(launcher["worker_start_ray_commands"][-1])
    assert head["head"]
    assert head["num_cpus"] == 0
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"
    assert _shm(launcher) > 2 * max(head["object_store_memory"], worker["object_store_memory"])


def _shm(launcher: dict[str, Any]) -> float:
    options = " ".join(launcher["docker"]["run_options"])
    found = re.search(r"--shm-size=(\d+)g", options)
    assert found
    return float(found[1]) * 2**30


def test_containers_see_the_shared_folder_where_it_is_mounted(launcher: dict[str, Any]) -> None:
    folder = "/mnt/personlab"
    assert f"--volume={folder}:{folder}" in launcher["docker"]["run_options"]
    assert folder in launcher["initialization_commands"][-1]
    assert f"PYTHONPATH={folder}" in (ROOT / "cluster/Dockerfile").read_text()


# --- KubeRay ------------------------------------------------------------------------------------------------


def test_the_job_has_only_fields_that_kuberay_knows(job: dict[str, Any]) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert set(job["spec"]) <= RAY_JOB
    assert set(cluster) <= RAY_CLUSTER
    assert set(cluster["headGroupSpec"]) <= HEAD
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= WORKERS
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]


def test_the_job_s_start_parameters_are_options_of_ray(job: dict[str, Any]) -> None:
    for group, pod in _pods(job):
        given = group["rayStartParams"]
        assert all(isinstance(value, str) for value in given.values())
        options = _command("ray start " + " ".join(f"--{name}={value}" for name, value in given.items()))
        shm = next(volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm")
        assert shm["medium"] == "Memory"
        assert float(shm["sizeLimit"].removesuffix("Gi")) * 2**30 > 2 * options["object_store_memory"]


def test_the_job_s_containers_mount_volumes_that_there_are(job: dict[str, Any]) -> None:
    for _, pod in _pods(job):
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            assert container["resources"]["requests"] == container["resources"]["limits"]
            memory, shm = (
                float(size.removesuffix("Gi"))
                for size in (
                    container["resources"]["limits"]["memory"],
                    *(volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if "emptyDir" in volume),
                )
            )
            assert shm < memory


# --- all of them --------------------------------------------------------------------------------------------


def test_every_recipe_has_the_ray_that_is_locked(launcher: dict[str, Any], job: dict[str, Any]) -> None:
    version = _ray_version()
    assert f"FROM rayproject/ray:{version}-" in (ROOT / "cluster/Dockerfile").read_text()
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == version
    images = [launcher["docker"]["image"], *(pod["containers"][0]["image"] for _, pod in _pods(job))]
    assert set(images) == {f"YOUR_REGISTRY/personlab:ray-{version}"}
    assert f'"ray[default]=={version}"' in PAGE.read_text()


def test_the_parameters_of_the_page_are_parameters(job: dict[str, Any], launcher: dict[str, Any]) -> None:
    snippet = re.search(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert snippet
    params = Params.model_validate(yaml.safe_load(snippet[1]))
    gpus = [
        group["replicas"] * int(pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
        for group, pod in _pods(job)
        if "replicas" in group
    ]
    nodes = launcher["available_node_types"].values()
    assert params.compute.workers == sum(gpus)
    assert params.compute.workers == sum(
        n["resources"].get("GPU", 0) * n.get("max_workers", 0) for n in nodes
    )


def _submissions() -> list[str]:
    return re.findall(r"^ray job submit .*$", PAGE.read_text(), re.MULTILINE)


@pytest.mark.parametrize("line", _submissions())
def test_what_is_submitted_is_a_command_of_this_program(line: str) -> None:
    entrypoint = line.partition(" -- ")[2]
    if entrypoint.startswith("python -m personlab "):
        app.parse_args(shlex.split(entrypoint)[3:], exit_on_error=False, print_error=False)
    else:
        assert entrypoint == 'bash -c "cd /mnt/personlab && dvc repro"'


@pytest.mark.skipif(importlib.util.find_spec("aiohttp") is None, reason="needs ray[default]")
@pytest.mark.parametrize("line", _submissions())
def test_submitting_is_a_command_of_ray(line: str) -> None:
    assert _command(line)["entrypoint"]


def test_the_job_runs_what_the_page_submits(job: dict[str, Any]) -> None:
    assert any(line.endswith(f"-- {job['spec']['entrypoint']}") for line in _submissions())
