"""A team's quota as Kueue objects, for clusters without task governance: flavour, queues, priorities.

python -m framework.launch.schedulers.kueue --team driving --instance p5.48xlarge --nodes 8 | kubectl apply -f -

Teams lend unused quota to the other teams of their cohort, and reclaim it by preempting the borrowers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from framework.launch.schedulers.instances import INSTANCES, find_instance
from framework.launch.schedulers.kubernetes import LABEL, to_yaml
from framework.launch.spec import SpecError
from framework.recipe.credentials import mask_output

VERSION = "kueue.x-k8s.io/v1beta1"
PRIORITIES = {"evaluation": 100, "training": 50, "sweep": 10}
"""Priority by kind of job. Evaluations come first: they are short, and people wait for them."""
BORROWED = 0.5
"""The fraction of its own quota that a team may borrow from the others."""


def team_objects(team: str, instance: str, nodes: int, cohort: str) -> list[dict[str, Any]]:
    """Return the objects that give `team` a quota of `nodes` nodes of type `instance`. Raises `KeyError` for an unknown
    type, and `SpecError` for a name that Kubernetes refuses.
    """
    for name, value in (("team", team), ("team", f"hyperpod-ns-{team}-localqueue"), ("cohort", cohort)):
        if not LABEL.fullmatch(value):
            raise SpecError(f"--{name}: {value!r} is no name that Kubernetes takes (63 small letters, digits, - and .)")
    node = find_instance(instance)
    if node is None:
        raise KeyError(f"{instance}: not in framework/launch/schedulers/instances.py; it knows {', '.join(INSTANCES)}")
    counts = {"nvidia.com/gpu": node.gpus * nodes, "vpc.amazonaws.com/efa": node.efa * nodes}
    resources = {name: count for name, count in counts.items() if count}
    quota = [
        {"name": name, "nominalQuota": count, "borrowingLimit": int(BORROWED * count)}
        for name, count in resources.items()
    ]
    namespace, flavor = f"hyperpod-ns-{team}", instance.replace(".", "-")
    queue = {
        "cohort": cohort,
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "preemption": {"reclaimWithinCohort": "Any", "withinClusterQueue": "LowerPriority"},
        "resourceGroups": [{"coveredResources": list(resources), "flavors": [{"name": flavor, "resources": quota}]}],
    }
    labels = {"node.kubernetes.io/instance-type": instance}
    return [
        _object("ResourceFlavor", flavor, spec={"nodeLabels": labels}),
        _object("ClusterQueue", f"{namespace}-clusterqueue", spec=queue),
        _object("LocalQueue", f"{namespace}-localqueue", namespace, spec={"clusterQueue": f"{namespace}-clusterqueue"}),
        *(_object("WorkloadPriorityClass", f"{name}-priority", value=value) for name, value in PRIORITIES.items()),
    ]


def _object(kind: str, name: str, namespace: str | None = None, **content: Any) -> dict[str, Any]:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": VERSION, "kind": kind, "metadata": metadata, **content}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the objects. Returns 2 for an unknown instance type."""
    if arguments is None:  # a process of its own
        mask_output()
    parser = argparse.ArgumentParser(
        prog="python -m framework.launch.schedulers.kueue", description="A team's quota in Kueue."
    )
    parser.add_argument("--team", required=True)
    parser.add_argument("--instance", required=True, help="with `ml.` on HyperPod")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--cohort", default="hyperpod", help="the teams that share quota")
    options = parser.parse_args(arguments)
    try:
        print(to_yaml(team_objects(**vars(options))), end="")
    except (KeyError, SpecError) as error:
        print(error.args[0], file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
