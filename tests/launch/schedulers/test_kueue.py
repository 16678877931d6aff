"""A team's quota is valid by Kueue's schemas and fits the queue and the priorities that jobs name."""

from __future__ import annotations

import pytest
import yaml

from framework.launch.schedulers.kueue import main, team_objects
from tests.launch.schedulers.schemas import faults
from tests.launch.specimens import KUBEFLOW, SPEC

OBJECTS = team_objects("driving", "ml.p5.48xlarge", 8, "hyperpod")


@pytest.mark.parametrize("manifest", OBJECTS, ids=lambda each: f"{each['kind']} {each['metadata']['name']}")
def test_it_is_valid_and_has_no_key_that_the_schema_does_not_name(manifest: dict) -> None:
    assert faults(manifest) == []
    content = "spec" if "spec" in manifest else "metadata"
    assert faults({**manifest, content: {**manifest[content], "colour": "red"}}) != []


def test_jobs_find_their_queue_and_priority_and_fit_the_quota() -> None:
    job = KUBEFLOW.manifest(SPEC)
    by_kind = {each["kind"]: each for each in OBJECTS}
    labels = job["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == by_kind["LocalQueue"]["metadata"]["name"]
    assert job["metadata"]["namespace"] == by_kind["LocalQueue"]["metadata"]["namespace"]
    assert labels["kueue.x-k8s.io/priority-class"] in {each["metadata"]["name"] for each in OBJECTS}
    (group,) = by_kind["ClusterQueue"]["spec"]["resourceGroups"]
    pod = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    asked = pod["containers"][0]["resources"]["requests"]
    (flavor,) = group["flavors"]
    quota = {each["name"]: each["nominalQuota"] for each in flavor["resources"]}
    assert set(group["coveredResources"]) == set(asked) == set(quota)
    assert all(SPEC.nodes * int(count) <= quota[name] for name, count in asked.items())
    selected = by_kind["ResourceFlavor"]["spec"]["nodeLabels"]
    assert selected.items() <= pod["nodeSelector"].items()


def test_the_command_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--team", "driving", "--instance", "ml.p5.48xlarge", "--nodes", "8"]) == 0
    assert list(yaml.safe_load_all(capsys.readouterr().out)) == OBJECTS
    assert main(["--team", "driving", "--instance", "p9", "--nodes", "8"]) == 2
    assert "p9: not in framework/launch/schedulers/instances.py" in capsys.readouterr().err
