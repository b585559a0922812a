"""The Kubernetes manifests hold what JobSet, Job and Pod know, and run `xtra pretrain`.

The schema is that of kubeflow-trainer-api: classes generated from the OpenAPI definitions of
Kubernetes and of JobSet v1alpha2. They leave unknown fields out, so what does not come back from
them is misspelt.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator

import pytest
import yaml
from kubeflow_trainer_api import models

from tests.launch.machine import LAUNCH
from xtra_jax.cli import main
from xtra_jax.errors import RunFailed

MANIFESTS = sorted(LAUNCH.glob("*.yaml"))

# Fields whose keys are the user's, not the schema's.
FREE = {"annotations", "labels", "limits", "nodeSelector", "requests"}

# What these fields may hold, which the classes don't check; "failurePolicy", "action" is an action
# anywhere inside of a failurePolicy.
VALUES = {
    ("apiVersion",): {"jobset.x-k8s.io/v1alpha2"},
    ("kind",): {"JobSet"},
    ("failurePolicy", "action"): {
        "FailJobSet",
        "RestartJobSet",
        "RestartJobSetAndIgnoreMaxRestarts",
    },
    ("failurePolicy", "onJobFailureReasons"): {
        "BackoffLimitExceeded",
        "DeadlineExceeded",
        "FailedIndexes",
        "MaxFailedIndexesExceeded",
        "PodFailurePolicy",
    },
    ("podFailurePolicy", "status"): {"False", "True", "Unknown"},
    ("emptyDir", "medium"): {"", "Memory"},
}
CHECKED_BY_CLASSES = {"action", "completionMode", "operator", "restartPolicy"}


@pytest.fixture(params=MANIFESTS, ids=[file.stem for file in MANIFESTS])
def manifest(request):
    return yaml.safe_load(request.param.read_text())


def validate(manifest: dict) -> None:
    """Raises where the manifest isn't a JobSet."""
    problems = list(lost(manifest, models.JobsetV1alpha2JobSet.from_dict(manifest).to_dict()))
    if problems:
        raise ValueError("; ".join(problems))
    for path, value in fields(manifest):
        for key, allowed in VALUES.items():
            held = value if isinstance(value, list) else [value]
            if path[-1] == key[-1] and set(key) <= set(path) and not set(held) <= allowed:
                raise ValueError(f"{path}: {value} is none of {sorted(allowed)}")


def lost(given, parsed, path="manifest") -> Iterator[str]:
    """The places of `given` that aren't in `parsed`, which may have more: defaults."""
    if isinstance(given, dict) and isinstance(parsed, dict):
        for key, value in given.items():
            if key in parsed:
                yield from lost(value, parsed[key], f"{path}.{key}")
            else:
                yield f"{path} has no field {key}"
    elif isinstance(given, list) and isinstance(parsed, list):
        for number, (mine, theirs) in enumerate(zip(given, parsed, strict=True)):
            yield from lost(mine, theirs, f"{path}[{number}]")
    elif given != parsed:
        yield f"{path}: {given!r} became {parsed!r}"


def fields(node, path=()) -> Iterator[tuple[tuple, object]]:
    """The path and value of every field that the schema names."""
    children = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in children:
        if isinstance(node, dict):
            yield (*path, key), value
        if isinstance(value, dict | list) and key not in FREE:
            yield from fields(value, (*path, key))


def holder(manifest, path):
    """The dictionary that holds the last key of a path."""
    for key in path[:-1]:
        manifest = manifest[key]
    return manifest


def job(manifest) -> dict:
    [replicated] = manifest["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def pod(manifest) -> dict:
    return job(manifest)["template"]["spec"]


def container(manifest) -> dict:
    [only] = pod(manifest)["containers"]
    return only


def environment(manifest) -> dict[str, str | None]:
    return {entry["name"]: entry.get("value") for entry in container(manifest)["env"]}


def test_it_is_valid(manifest):
    validate(manifest)


def test_a_misspelt_field_is_found_at_every_level(manifest):
    paths = [path for path, _ in fields(manifest)]
    assert len(paths) > 60
    for path in paths:
        broken = copy.deepcopy(manifest)
        parent = holder(broken, path)
        parent[f"{path[-1]}X"] = parent.pop(path[-1])
        with pytest.raises(ValueError):
            validate(broken)


def test_a_value_of_another_type_is_found_at_every_level(manifest):
    for path, value in fields(manifest):
        broken = copy.deepcopy(manifest)
        holder(broken, path)[path[-1]] = ["seven"] if isinstance(value, str) else "seven"
        with pytest.raises((ValueError, TypeError, AttributeError)):
            validate(broken)


def test_a_made_up_value_is_found(manifest):
    names = {key[-1] for key in VALUES} | CHECKED_BY_CLASSES
    paths = [(path, value) for path, value in fields(manifest) if path[-1] in names]
    assert {path[-1] for path, _ in paths} == names
    for path, value in paths:
        broken = copy.deepcopy(manifest)
        holder(broken, path)[path[-1]] = [*value, "X"] if isinstance(value, list) else "X"
        with pytest.raises(ValueError):
            validate(broken)


def test_its_command_is_one_that_xtra_takes(manifest, monkeypatch, capsys):
    def reached(config, workdir, **_):
        raise RunFailed(f"trains {config.model.variant} in {workdir}")

    monkeypatch.setattr("xtra_jax.training.pretrain.pretrain", reached)
    program, *words = container(manifest)["command"]
    assert program == "xtra"
    assert main(words) == 1
    assert re.search(r"xtra: trains huge in (/runs|gs://bucket)/h14\n", capsys.readouterr().err)


def test_a_run_that_stopped_is_started_again_and_counts_for_no_failure(manifest):
    # Were it to exit with 0, Kubernetes would take the pod's work for done.
    command, name = container(manifest)["command"], container(manifest)["name"]
    stopped = int(command[-1].removeprefix("--stopped_exit_code="))
    assert f"stopped={stopped}\n" in (LAUNCH / "slurm.sh").read_text()
    [by_code, by_node] = job(manifest)["podFailurePolicy"]["rules"]
    assert by_code["onExitCodes"] == {
        "containerName": name,
        "operator": "In",
        "values": [stopped],
    }
    assert by_node["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert by_code["action"] == by_node["action"] == "FailJob"
    [rule] = manifest["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_one_failed_pod_fails_them_all(manifest):
    # A pod that came back alone would wait for processes that are gone.
    assert job(manifest)["backoffLimit"] == 0
    assert pod(manifest)["restartPolicy"] == "Never"
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] > 0


def test_there_is_time_to_save_the_largest_model(manifest):
    state = 865e6 * 3 * 4  # bytes: parameters and two moments of ViT-H/14, in float32
    slow = 20e6  # bytes/s
    assert pod(manifest)["terminationGracePeriodSeconds"] > state / slow


def test_all_agree_on_the_number_of_hosts(manifest):
    assert job(manifest)["completionMode"] == "Indexed"
    hosts = job(manifest)["completions"]
    assert job(manifest)["parallelism"] == hosts
    if "JAX_NUM_PROCESSES" in environment(manifest):
        assert environment(manifest)["JAX_NUM_PROCESSES"] == str(hosts)
    else:
        topology = pod(manifest)["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
        rows, columns = map(int, topology.split("x"))
        chips = container(manifest)["resources"]["limits"]["google.com/tpu"]
        assert hosts * chips == rows * columns


def test_processes_on_gpus_find_the_first_one():
    manifest = yaml.safe_load((LAUNCH / "kubernetes_gpu.yaml").read_text())
    [replicated] = manifest["spec"]["replicatedJobs"]
    assert manifest["spec"]["coordinator"] == {
        "replicatedJob": replicated["name"],
        "jobIndex": 0,
        "podIndex": 0,
    }
    env = container(manifest)["env"]
    host = next(i for i, entry in enumerate(env) if "valueFrom" in entry)
    address = next(i for i, entry in enumerate(env) if entry["name"] == "JAX_COORDINATOR_ADDRESS")
    # The annotation that JobSet gives every pod; a variable can name those before it.
    assert "jobset.sigs.k8s.io/coordinator" in str(env[host]["valueFrom"])
    assert host < address
    [port] = container(manifest)["ports"]
    assert env[address]["value"] == f"$({env[host]['name']}):{port['containerPort']}"


def test_everything_mounted_is_there(manifest):
    volumes = {volume["name"]: volume for volume in pod(manifest)["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container(manifest)["volumeMounts"]}
    assert set(mounts.values()) == set(volumes)
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
