"""No name and no override can become shell or YAML: it is refused, or arrives as it was written."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from framework.launch.schedulers.kubernetes import job_name, to_yaml
from framework.launch.spec import SpecError
from tests.fuzzing import fuzz
from tests.launch.bash import run_script
from tests.launch.specimens import HYPERPOD, KUBEFLOW, sbatch_script, spec

NASTY = st.sampled_from(
    ["'", '"', "$(touch broken)", "`touch broken`", "$HOME", "${x}", "\n", "\r", "\t", ";", "&&", "|", ">", "\\",
     "#", "!", "*", "~", "--", " ", "!!python/object/apply:os.system", "&a", "*a", "<<: ", "- ", ": ", "{", "}", "[",
     "%", "@", "$$", "$$(A)", "yes", "null", "0x1F", "1e3", "---", "...", "\u2028", "\x85", "\x1b", "\x01", "é",
     "#SBATCH --nodes=9", "EOF", ")", "\x7f"]
)  # fmt: skip
TEXT = st.lists(NASTY | st.text(max_size=5), min_size=1, max_size=8).map("".join)


@pytest.mark.attack("rendering", "overrides and variables through bash", "inert text")
@pytest.mark.guarantee("Nothing in a recipe becomes shell or YAML")
@fuzz(60)
@given(overrides=st.lists(TEXT, min_size=1, max_size=4), value=TEXT)
@example(overrides=["a='$(touch broken)\n#SBATCH --nodes=9\n'"], value="`touch broken`")
@pytest.mark.slow
def test_overrides_and_variables_reach_the_trainer_through_bash_as_they_are(overrides: list[str], value: str) -> None:
    try:
        job = spec(overrides=tuple(overrides), environment=(("VALUE", value),))
    except SpecError:
        assert any("\0" in text or re.search("[\ud800-\udfff]", text) for text in (*overrides, value))
        return
    script = sbatch_script(job)
    with tempfile.TemporaryDirectory() as folder:
        ran = run_script(script, Path(folder, "notes"))
        assert ran.code == 0, ran.output
        assert ran.overrides() == overrides
        assert ran.environment["VALUE"] == value
        assert not Path(folder, "notes", "broken").exists()
    # sbatch stops reading directives at the first line that is neither a comment nor empty.
    head = script[: script.index("folder=")]
    assert all(line.startswith("#") for line in head.splitlines() if line)
    assert head.count("#SBATCH --nodes") == 1


@pytest.mark.attack("rendering", "overrides and variables through a manifest", "inert text")
@pytest.mark.guarantee("Nothing in a recipe becomes shell or YAML")
@fuzz(30)
@given(overrides=st.lists(TEXT, min_size=1, max_size=4), value=TEXT)
@example(overrides=["$$(A)", "!!python/object/apply:os.system ['x']"], value="$(HOME)")
@pytest.mark.slow
def test_overrides_and_variables_reach_a_pod_as_they_are(overrides: list[str], value: str) -> None:
    try:
        job = spec(overrides=tuple(overrides), environment=(("VALUE", value),))
    except SpecError:
        return
    for manifest in (KUBEFLOW.manifest(job), HYPERPOD.manifest(job)):
        read = yaml.safe_load(to_yaml([manifest]))
        assert read == manifest
        for pod in pods(read):
            container = pod["containers"][0]
            command = [expanded(word) for word in container["command"]]
            assert command[command.index("--") + 1 :] == overrides
            assert expanded(next(each["value"] for each in container["env"] if each["name"] == "VALUE")) == value


@pytest.mark.attack("rendering", "any name of a run", "refused or harmless")
@given(TEXT)
def test_names_are_refused_or_harmless_everywhere(name: str) -> None:
    if not re.fullmatch(r"[\w.=,+@/-]+", name, re.ASCII):
        with pytest.raises(SpecError, match=re.escape(repr(name))):
            spec(name=name)
        with pytest.raises(SpecError, match="folder"):
            spec(folder=name)
        return
    try:
        job = spec(name=name)
    except SpecError:
        return
    assert f"#SBATCH --job-name={name}\n" in sbatch_script(job)
    assert yaml.safe_load(to_yaml([KUBEFLOW.manifest(job)]))["metadata"]["annotations"]["framework/run"] == name


@pytest.mark.attack("rendering", "any allowed name as that of a pod", "a valid name")
@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._=,+@/-]{0,199}", fullmatch=True))
def test_kubernetes_takes_the_name_of_every_run(name: str) -> None:
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", job_name(name))
    assert len(job_name(name)) <= 50


def pods(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    replicas = manifest["spec"].get("pytorchReplicaSpecs") or dict(enumerate(manifest["spec"].get("replicaSpecs", [])))
    return [replica["template"]["spec"] for replica in replicas.values()]


def expanded(text: str) -> str:
    """`text` as the kubelet gives it to a container: `$$` is a dollar, `$(NAME)` a variable's value where there is one.

    Source: kubernetes, third_party/forked/golang/expansion/expand.go.
    """
    return re.sub(r"\$(\$|\([^)]*\))", lambda match: "$" if match[1] == "$" else "EXPANDED", text)
