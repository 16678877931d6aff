"""A corpus of attacks on what is rendered: each is refused with the key's name, or reaches its place as inert text."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from framework.launch.schedulers.kubernetes import HyperPodScheduler, KubeflowScheduler, job_name, to_yaml
from framework.launch.schedulers.kueue import main as kueue
from framework.launch.schedulers.slurm import SlurmScheduler
from framework.launch.spec import SpecError, load
from framework.launch.submissions import names_job
from framework.run.evaluations import Evaluation
from framework.run.layout import file_stem
from tests.launch.bash import run_script
from tests.launch.specimens import CLUSTER, HYPERPOD, KUBEFLOW, sbatch_script, spec
from tests.launch.test_injection import expanded, pods

PAYLOADS = [
    "$(touch broken)", "`touch broken`", "a; touch broken", "a && touch broken", "a | touch broken", "a > broken",
    "'; touch broken; '", '"; touch broken; "', "a\ntouch broken", "a\r\ntouch broken", "a\n#SBATCH --nodes=99",
    "--wrap=touch broken", "a\n---\nkind: Secret", "!!python/object/apply:os.system [touch broken]", "{{a: b}}",
    "*alias", "&anchor a", "$(HOME)", "$$(HOME)", "a: b", "a #b", "\\", "a\\\ntouch broken", "${IFS}touch${IFS}broken",
    "../../../broken", "~/broken", "%j", "\x1b[2J", "\u2028touch broken", "é", "",
]  # fmt: skip
NAMED = ["name", "folder", "directory", "code", "python"]
"""Fields of a job that stand unquoted in a directive or in a manifest: a payload is refused."""


@pytest.mark.attack("rendering", "shell and YAML in a name or a path", "refused")
@pytest.mark.parametrize("payload", PAYLOADS, ids=repr)
@pytest.mark.parametrize("field", NAMED)
def test_a_payload_in_a_name_or_a_path_is_refused(field: str, payload: str) -> None:
    for value in (payload, f"/shared/{payload}") if field != "name" else (payload,):
        if re.fullmatch(r"/[A-Za-z0-9._/-]*", value):
            continue
        with pytest.raises(SpecError, match=f"{field}: "):
            spec(**{field: value})


@pytest.mark.attack("rendering", "shell and YAML in overrides and variables", "inert text")
@pytest.mark.parametrize("payload", PAYLOADS, ids=repr)
@pytest.mark.fast_cases(8)
def test_a_payload_in_an_override_or_a_variable_arrives_as_it_is(payload: str, tmp_path: Path) -> None:
    job = spec(overrides=(payload, f"a={payload}"), environment=(("VALUE", payload),))
    ran = run_script(sbatch_script(job), tmp_path)
    assert ran.code == 0, ran.output
    assert ran.overrides() == [payload, f"a={payload}"]
    assert ran.environment["VALUE"] == payload
    assert not list(tmp_path.rglob("broken"))
    for scheduler in (KUBEFLOW, HYPERPOD):
        (manifest,) = yaml.safe_load_all(to_yaml([scheduler.manifest(job)]))
        for pod in pods(manifest):
            command = [expanded(word) for word in pod["containers"][0]["command"]]
            assert command[-2:] == [payload, f"a={payload}"]


@pytest.mark.attack("rendering", "shell and YAML in a pod's settings", "refused")
@pytest.mark.parametrize("payload", PAYLOADS, ids=repr)
@pytest.mark.parametrize("field", ["namespace", "claim", "queue", "priority", "secret", "image"])
def test_a_payload_in_a_pod_s_settings_is_refused(field: str, payload: str) -> None:
    for scheduler in (KubeflowScheduler, HyperPodScheduler):
        with pytest.raises(SpecError, match=f"launch.{field}: "):
            scheduler(**{**CLUSTER, field: payload})


@pytest.mark.attack("rendering", "shell and YAML as a variable's name", "refused")
@pytest.mark.parametrize("payload", PAYLOADS, ids=repr)
def test_a_payload_in_a_name_of_a_variable_is_refused(payload: str) -> None:
    for changes in ({"environment": ((payload, "a"),)}, {"passed": (payload,)}, {"secrets": (payload,)}):
        with pytest.raises(SpecError, match=r"launch\.(variables|secrets): "):
            spec(**changes)


@pytest.mark.attack("rendering", "YAML in free text of a manifest", "one string")
@pytest.mark.parametrize("payload", PAYLOADS, ids=repr)
@pytest.mark.parametrize("field", ["topology", "mount"])
def test_a_payload_in_free_text_stays_one_string_of_the_manifest(field: str, payload: str) -> None:
    value = f"/{payload}" if field == "mount" else payload
    manifest = KubeflowScheduler(**{**CLUSTER, field: value}).manifest(spec())
    assert list(yaml.safe_load_all(to_yaml([manifest]))) == [manifest]


NUMBERS: list[Any] = ["4\n#SBATCH --nodes=99", "4", 4.5, float("nan"), float("inf"), True, None, -1, [4], {"a": 1}]


@pytest.mark.attack("rendering", "text and non-numbers as numbers", "refused")
@pytest.mark.parametrize("value", NUMBERS, ids=repr)
@pytest.mark.parametrize("field", ["nodes", "devices", "gpus", "minutes", "notice_s", "requeues"])
def test_a_number_that_is_none_is_refused(field: str, value: Any) -> None:
    with pytest.raises(SpecError, match=f"launch.{field}: "):
        spec(**{field: value})


@pytest.mark.attack("rendering", "text and non-numbers as a sweep's number", "refused")
@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_a_sweep_s_number_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(SpecError, match=r"launch.at_once: "):
        SlurmScheduler(partition="p5", at_once=value)


@pytest.mark.attack("folder", "a stored job that was tampered with", "refused")
@pytest.mark.parametrize("payload", PAYLOADS, ids=repr)
def test_a_stored_job_that_was_tampered_with_is_refused(payload: str, tmp_path: Path) -> None:
    spec(folder=str(tmp_path)).save()
    file = tmp_path / "job.json"
    for field in ("name", "nodes", "python"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {field: payload}))
        with pytest.raises(SpecError, match=r"job.json: .*submit the run again"):
            load(tmp_path)
        spec(folder=str(tmp_path)).save()


@pytest.mark.attack("folder", "a stored submission that is an option or a command", "not used")
@pytest.mark.parametrize(
    "job", ["--all", "-u root", "41 --all", "", " ", "41; ls", "41\n42", "$(ls)", "-", 41, None, ["41"]]
)
def test_a_stored_submission_is_no_option_of_a_command(job: Any) -> None:
    assert not names_job({"job": job, "file": "/a"})


@pytest.mark.parametrize(
    "job", ["41", "41_1", "team/pytorchjob/a", "team/pytorchjob/a team/pytorchjob/b", "evaluate-1"]
)
def test_a_stored_submission_names_its_job(job: str) -> None:
    assert names_job({"job": job, "file": "/a"})


@pytest.mark.attack("rendering", "shell and YAML as a team's name", "refused")
@pytest.mark.parametrize("arguments", [["--team", each] for each in PAYLOADS] + [["--team", "a" * 64]], ids=repr)
def test_a_team_s_objects_bear_names_that_kubernetes_takes(arguments: list[str], capsys) -> None:
    try:
        code = kueue([*arguments, "--instance", "p5.48xlarge", "--nodes", "2"])
    except SystemExit as error:  # argparse takes it for an option
        code = int(error.code or 0)
    assert code == 2
    assert capsys.readouterr().out == ""


LONG = ["a" * 300, "A" * 300, "é" * 300, "a/" * 150 + "a", "drive/" + "x" * 250]
SHORTENED: list[Callable[[str], str]] = [job_name, file_stem]


@pytest.mark.attack("rendering", "names longer than files or pods may have", "shortened, unique")
@pytest.mark.parametrize("name", LONG, ids=lambda name: name[:8])
@pytest.mark.parametrize("shorten", SHORTENED)
def test_a_long_name_is_shortened_and_stays_unique(shorten: Callable[[str], str], name: str) -> None:
    names = {shorten(name), shorten(f"{name}b"), shorten(f"{name}c")}
    assert len(names) == 3
    assert all(len(each.encode()) <= 109 for each in names)
    assert all("/" not in each for each in names)


def test_a_job_s_pods_have_names_of_63_characters_at_most() -> None:
    assert len(f"{job_name('a' * 300)}-worker-9999") <= 63


@pytest.mark.attack("folder", "an eval's name that is a path", "a file of its step")
@pytest.mark.parametrize("suite", ["../../../broken", "/etc/broken", ".hidden", "a" * 300, "é" * 200, "a/b", "a\nb"])
def test_an_eval_s_name_stays_a_file_of_its_step(suite: str, tmp_path: Path) -> None:
    evaluation = Evaluation(tmp_path, 5, "0" * 64, suite)
    evaluation.record(1, "job", "41", "step-00000005.attempt-1")
    assert evaluation.claim(1, "me")
    assert evaluation.finish({"figures": {}})
    assert len(list(evaluation.folder.iterdir())) == 3
    assert [path.parent for path in tmp_path.rglob("*") if path.is_file()] == [evaluation.folder] * 3


def test_the_corpus_runs_nothing(tmp_path: Path) -> None:
    """The check of the other tests: the payloads do work where they are not quoted."""
    subprocess.run(["bash", "-c", PAYLOADS[0]], cwd=tmp_path, check=False)
    assert (tmp_path / "broken").exists()
