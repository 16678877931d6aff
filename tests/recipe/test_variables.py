"""What interpolations call: variables by name, nothing else; secrets by what they are."""

from __future__ import annotations

from typing import Any

import pytest

from framework.__main__ import main
from framework.recipe.catalogue import Catalogue
from framework.recipe.variables import is_credential, is_secret, names_secret, refused_calls, variables_read


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("${oc.env:HOME}", ["HOME"]),
        ('${oc.env:"HOME"}', ["HOME"]),
        ("${oc.env:A,${oc.env:'B'}}", ["A", "B"]),
        ("a ${oc.env:A} and ${oc.env:B,none}", ["A", "B"]),
        (r"\${oc.env:A}", []),
        ("${a.b}", []),
        (3, []),
    ],
)
def test_variables_are_found_however_they_are_nested_or_quoted(text: Any, names: list[str]) -> None:
    assert [name for _, name in variables_read({"key": [text]})] == names
    assert list(refused_calls({"key": [text]})) == []


@pytest.mark.parametrize(
    "text",
    [
        "${oc.create:{_target_: builtins.open}}",
        "${oc.decode:${oc.env:A}}",
        "${oc.env:WANDB_${a}_KEY}",
        "${oc.env:${a}}",
        "${oc.${a}:HOME}",
        "${oc.select:a,b}",
        "${oc.create:[\"${oc.env:''A''}\"]}",
    ],
)
def test_other_calls_are_refused(text: str) -> None:
    assert [key for key, _ in refused_calls({"key": text})]


@pytest.mark.parametrize(
    "name",
    [
        "WANDB_API_KEY",
        "HF_TOKEN",
        "DB_PASSWORD",
        "AWS_SECRET_ACCESS_KEY",
        "apiKey",
        "client-secret",
        "GOOGLE_CREDENTIALS",
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert names_secret(name)


@pytest.mark.parametrize("name", ["TOKENIZER_PATH", "KEYBOARD", "max_new_tokens", "special_tokens", "HOME", "keys"])
def test_innocent_names(name: str) -> None:
    assert not names_secret(name)


def test_a_variable_is_a_secret_by_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE", "postgres://user:hunter2hunter2@host/db")
    monkeypatch.setenv("PLACE", "outputs/runs")
    assert is_secret("DATABASE")
    assert not is_secret("PLACE")


@pytest.mark.parametrize(
    ("key", "value", "secret"),
    [
        ("api_key", "q8Zr2LmX0vNc7TyB", True),
        ("note", "ghp_" + "a1B2" * 9, True),
        ("note", "AKIA" + "ABCDEFGH12345678", True),
        ("url", "https://user:password@host/x", True),
        ("api_key", "${oc.env:NAME}", False),
        ("api_key", "aaaaaaaaaaaaaaaa", False),
        ("url", "http://127.0.0.1:8000", False),
        ("weight_decay", 0.1, False),
        ("model", "Qwen/Qwen3-VL-2B-Instruct", False),
        ("special_tokens", "<|lidar_pad|><|radar_pad|>", False),
    ],
)
def test_literal_credentials(key: str, value: Any, secret: bool) -> None:
    assert is_credential(("tracking", key), value) is secret


@pytest.mark.parametrize(
    "written",
    ["${oc.env:WANDB_API_KEY}", "${oc.env:NOT_SET,${oc.env:'WANDB_API_KEY'}}", "${oc.decode:${oc.env:WANDB_API_KEY}}"],
)
@pytest.mark.parametrize("verb", ["check", "show", "diff", "plan"])
def test_no_verb_prints_a_secret(
    catalogue: Catalogue, verb: str, written: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "hunter2hunter2")
    file = catalogue.root / "recipes" / "leak.yaml"
    file.write_text(f'# @package _global_\n# Leaks.\ndefaults:\n  - toy\n  - _self_\ntask:\n  out: "{written}"\n')
    assert main([verb, "recipe=leak"], catalogue) == 2
    printed = capsys.readouterr()
    assert "hunter2" not in printed.out + printed.err
    assert "task.out" in printed.out + printed.err
