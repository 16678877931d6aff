"""kubectl, as far as jobs need it: what submits a manifest, finds, watches and ends its job. A job is called
`namespace/kind/name`.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any

import yaml

from framework.launch.schedulers.kubernetes import JOB_LABEL, job_name

WAIT_S = 60.0
ENDED = ("Succeeded", "Failed", "Completed")
NO_SUCH_KIND = "the server doesn't have a resource type"
KINDS = ("pytorchjob", "hyperpodpytorchjob")


class KubectlError(OSError):
    """What kubectl said when it failed."""


def submit(manifest: str, after: Sequence[str] = ()) -> str:
    """Create the objects of `manifest`; the jobs they are, separated by spaces. Raises `KubectlError` where one is
    refused or there already.
    """
    if after:
        raise KubectlError(
            f"Kubernetes knows no job that waits for another ({', '.join(after)}); submit it when they end"
        )
    _run("create", "--filename=-", given=manifest)
    return " ".join(_called(each) for each in yaml.safe_load_all(manifest))


def test(manifest: str) -> str:
    """What the cluster's webhooks say of `manifest`. Raises `KubectlError` where they would refuse it."""
    return _run("create", "--dry-run=server", "--filename=-", given=manifest).strip()


def find(name: str, namespace: str | None = None) -> str | None:
    """The job of run `name` that has not ended, in `namespace` (None: the current one); None when there is none.
    Raises `KubectlError`.
    """
    place = [] if namespace is None else [f"--namespace={namespace}"]
    for kind in KINDS:
        found = _call("get", kind, job_name(name), *place, "--ignore-not-found", "--output=json")
        if found.returncode and NO_SUCH_KIND not in found.stderr:
            raise KubectlError(f"kubectl get {kind}: {found.stderr.strip()}")
        if found.returncode == 0 and found.stdout.strip():
            there = json.loads(found.stdout)
            return None if _state(there) in ENDED else _called(there)
    return None


def state(job: str) -> str | None:
    """What a job is at, by its newest condition; None when it is gone."""
    namespace, kind, name = job.split("/")
    found = _call("get", kind, name, f"--namespace={namespace}", "--ignore-not-found", "--output=json")
    return _state(json.loads(found.stdout)) if found.returncode == 0 and found.stdout.strip() else None


def stop(job: str) -> None:
    """Delete a job: SIGTERM to its pods, which save, and SIGKILL after their grace period. Raises `KubectlError`."""
    namespace, kind, name = job.split("/")
    _run("delete", kind, name, f"--namespace={namespace}", "--wait=false", "--ignore-not-found")


def again(manifest: str, job: str) -> str:
    """Create the one object of `manifest` that `job` is once more, in its own place. Raises `KubectlError`."""
    (wanted,) = (each for each in yaml.safe_load_all(manifest) if _called(each) == job)
    namespace, kind, name = job.split("/")
    _run("delete", kind, name, f"--namespace={namespace}", "--wait=true", "--ignore-not-found")
    return submit(yaml.safe_dump(wanted))


def lives(job: str) -> bool:
    """Whether a job has not ended. Raises `KubectlError` when the cluster cannot tell."""
    namespace, kind, name = job.split("/")
    said = _run("get", kind, name, f"--namespace={namespace}", "--ignore-not-found", "--output=json")
    return bool(said.strip()) and _state(json.loads(said)) not in ENDED


def log(job: str) -> str:
    """The last lines of a job's pods."""
    namespace, _, name = job.split("/")
    return _run("logs", f"--namespace={namespace}", f"--selector={JOB_LABEL}={name}", "--prefix", "--tail=50")


def queues(namespace: str) -> list[str]:
    """The names of Kueue's local queues in `namespace`. Raises `KubectlError`."""
    return _run(
        "get", "localqueues.kueue.x-k8s.io", f"--namespace={namespace}", "--output=jsonpath={.items[*].metadata.name}"
    ).split()


def _called(manifest: dict[str, Any]) -> str:
    metadata = manifest["metadata"]
    return f"{metadata['namespace']}/{manifest['kind'].lower()}/{metadata['name']}"


def _state(job: dict[str, Any]) -> str:
    conditions = [each["type"] for each in job.get("status", {}).get("conditions", []) if each["status"] == "True"]
    return str(conditions[-1]) if conditions else "Created"


def _run(*arguments: str, given: str = "") -> str:
    done = _call(*arguments, given=given)
    if done.returncode:
        raise KubectlError(f"kubectl {arguments[0]}: {(done.stderr.strip() or 'it gave no reason').splitlines()[-1]}")
    return done.stdout


def _call(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["kubectl", *arguments], input=given, capture_output=True, text=True, timeout=WAIT_S, check=False
        )
    except FileNotFoundError as error:
        raise KubectlError("kubectl: not installed here; launch from where the cluster can be reached") from error
    except subprocess.TimeoutExpired as error:
        raise KubectlError(f"kubectl: the cluster did not answer for {WAIT_S:.0f} s; is there a session?") from error
