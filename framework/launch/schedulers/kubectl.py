"""kubectl's command line."""

from __future__ import annotations

import subprocess

TIMEOUT_S = 60.0


class KubectlError(OSError):
    """A command of kubectl failed; the text is what it printed."""


def run(*arguments: str, stdin: str = "") -> str:
    """Return what kubectl prints. Raises `KubectlError` where it fails."""
    answer = call(*arguments, stdin=stdin)
    if answer.returncode:
        reason = (answer.stderr.strip() or "it gave no reason").splitlines()[-1]
        raise KubectlError(f"kubectl {arguments[0]}: {reason}")
    return answer.stdout


def call(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Return kubectl's answer, whether or not it succeeded. Raises `KubectlError` where there is none."""
    try:
        return subprocess.run(
            ["kubectl", *arguments], input=stdin, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise KubectlError("kubectl: not installed here; launch from where the cluster can be reached") from error
    except subprocess.TimeoutExpired as error:
        raise KubectlError(f"kubectl: the cluster did not answer for {TIMEOUT_S:.0f} s; is there a session?") from error


def queues(namespace: str) -> list[str]:
    """Return the names of Kueue's local queues in `namespace`. Raises `KubectlError`."""
    names = "--output=jsonpath={.items[*].metadata.name}"
    return run("get", "localqueues.kueue.x-k8s.io", f"--namespace={namespace}", names).split()
