"""Secrets in recipes: thirty ways to smuggle one in, all refused and never printed; twenty innocent recipes pass."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

from framework.__main__ import main
from framework.recipe.catalogue import Catalogue
from framework.recipe.credentials import MASK
from framework.run.folder import open_run
from framework.run.layout import CODE_DIFF_FILE

SECRET = "hunter2-Xq81LmZ0vN"
GITHUB = "ghp_" + "a1B2" * 9
AMAZON = "AKIA" + "ABCDEFGH12345678"
ENCODED = base64.b64encode(SECRET.encode()).decode()
SMUGGLED = {
    "plain": "out: '${oc.env:WANDB_API_KEY}'",
    "in a text": "out: 'key=${oc.env:WANDB_API_KEY}!'",
    "double quotes": """out: '${oc.env:"WANDB_API_KEY"}'""",
    "single quotes": """out: "${oc.env:'WANDB_API_KEY'}\"""",
    "spaces": "out: '${ oc.env : WANDB_API_KEY }'",
    "a default": "out: '${oc.env:NOT_SET,${oc.env:WANDB_API_KEY}}'",
    "a quoted default": """out: '${oc.env:NOT_SET,${oc.env:"WANDB_API_KEY"}}'""",
    "a default's default": "out: '${oc.env:NOT_SET,${oc.env:NEITHER,${oc.env:WANDB_API_KEY}}}'",
    "decoded": "out: '${oc.decode:${oc.env:WANDB_API_KEY}}'",
    "created": """out: '${oc.create:["${oc.env:WANDB_API_KEY}"]}'""",
    "selected": "out: '${oc.select:nothing,${oc.env:WANDB_API_KEY}}'",
    "a name put together": "out: '${oc.env:WANDB_${name}_KEY}'\n  part: API",
    "a name by another key": "out: '${oc.env:${.part}}'\n  part: WANDB_API_KEY",
    "a resolver put together": "out: '${oc.${.part}:WANDB_API_KEY}'\n  part: env",
    "interpolated twice": "out: '\\${oc.env:WANDB_API_KEY}'",
    "in a list": "out: [a, ['${oc.env:WANDB_API_KEY}']]",
    "in a mapping": "out: {a: {b: '${oc.env:WANDB_API_KEY}'}}",
    "as the value of another key": "out: '${.part}'\n  part: '${oc.env:WANDB_API_KEY}'",
    "a value that is a token": "out: '${oc.env:INNOCENT}'",
    "a value with a password": "out: '${oc.env:DATABASE}'",
    "a password's variable": "out: '${oc.env:PGPASSWORD}'",
    "camel case": "out: '${oc.env:apiKey}'",
    "a literal token": f"out: {GITHUB}",
    "a literal among words": f"out: 'use {AMAZON} please'",
    "a literal address": f"out: 'https://me:{SECRET}@host/x'",
    "a literal in a list": f"out: [1, {GITHUB}]",
    "a literal key": f"out: {{{GITHUB}: 1}}",
    "a literal password": f"out: {{password: {SECRET}}}",
    "an encoded password": f"out: {{api_key: {ENCODED}}}",
    "a number": "out: {token: 948271650384}",
    "put together from two": f"out: '${{.one}}${{.two}}'\n  one: {GITHUB[:9]}\n  two: {GITHUB[9:]}",
    "a list of passwords": f"out: {{passwords: [{SECRET}]}}",
    "a pair of name and value": f"out: {{name: password, value: {SECRET}}}",
    "an option of a command": f"out: '--password={SECRET}'",
    "a query of an address": f"out: 'https://host/x?access_token={SECRET}'",
    "a signed address": f"out: 'https://host/x?X-Amz-Signature={'5fe80f77d5fa3bec' * 4}'",
    "an address without a user": f"out: 'redis://:{SECRET}@host:1'",
    "a line of netrc": f"out: 'machine host login me password {SECRET}'",
    "a secret's value by another variable": "out: '${oc.env:COPY}'",
    "a secret's value as a literal": f"out: {SECRET}",
    "a token as a default": f"out: '${{oc.env:NOT_SET,hf_{'a1B2c3' * 6}}}'",
    "a comment": f"out: 1 # was {GITHUB}",
    "an anchor": f"out: &a {GITHUB}\n  other: *a",
    "a comment that gives a password": "out: 1 # password: hunter2-Zq8",
    "a comment with the environment's": f"out: 1 # {SECRET}",
    "a comment with a signed address": "out: 1 # https://host/x?X-Amz-Credential=q8Zr2LmX0vNc&X-Amz-Date=2026",
    "a comment in base64": f"out: 1 # {base64.b64encode(GITHUB.encode()).decode()}",
    "a comment of a key's body": "out: 1 # -----BEGIN OPENSSH PRIVATE KEY-----",
    "a token in base64": f"out: {base64.b64encode(f'x {GITHUB}'.encode()).decode()}",
    "the environment's in base64": f"out: {ENCODED}",
    "the environment's within base64": f"out: {base64.b64encode(f'me:{SECRET}'.encode()).decode()}",
    "the environment's in hexadecimal": f"out: {SECRET.encode().hex()}",
    "the environment's as a key": f"out: {{{SECRET}: 1}}",
    "a password with an @": "out: 'https://me:hunter2@home@host/x'",
    "a user that is a token": f"out: 'https://{'a1b2' * 6}@host/x'",
    "a header": "out: 'Authorization: Basic bWU6aHVudGVyMg=='",
    "a literal block": f"out: |\n    a: 1\n    key: {GITHUB}\n",
    "a list of pairs": f"out: [{{name: password, value: {SECRET}}}]",
    "an address that is quoted": "out: 'x?next=https%3A%2F%2Fhost%3Fsig%3DhunterhunterZq8'",
    "an assignment": f"out: 'export PASSWORD={SECRET}'",
    "JSON in a text": f"""out: '{{"api_key": "{SECRET}"}}'""",
    "escapes of an address": f"out: {''.join(f'%{each:02x}' for each in GITHUB.encode())}",
    "base64 twice": f"out: {base64.b64encode(base64.b64encode(GITHUB.encode())).decode()}",
    "a token of another service": f"out: 'nvapi-{'a1B2' * 12}'",
    "folded over lines": f"out: >-\n    first\n    {GITHUB}",
}
INNOCENT = [
    "out: '${oc.env:HOME}'",
    "out: '${oc.env:NOT_SET,none}'",
    "out: '${oc.env:TOKENIZER_PATH,tiny}'",
    "out: '${oc.env:MONKEY,ape}'",
    "out: '${oc.env:SSH_KEY_PATH,id}'",
    "out: {api_key: WANDB_API_KEY}",
    "out: {sort_key: time}",
    "out: {key: drive/ade}",
    "out: {pad_token: '<|endoftext|>'}",
    "out: {special_tokens: ['<|lidar|>', '<|radar|>']}",
    "out: {max_new_tokens: 64}",
    "out: {token: null}",
    "out: {name: key, value: time}",
    "out: 'https://host/x?token_count=12345678'",
    "out: '--tokenizer=Qwen/Qwen3-VL-2B-Instruct'",
    "out: {author: 'a person of the team'}",
    "out: https://host:8000/path?x=1",
    "out: s3://bucket/some-long-folder/shards",
    "out: 0123456789abcdef0123456789abcdef01234567 # a commit",
    "out: sha256-9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "out: Qwen/Qwen3-VL-2B-Instruct",
    "out: 'a sentence that speaks of a password and of a token'",
    "out: ['backbone.model.language_model.layers.*_proj']",
    "out: sk-learn",
    "out: 1 # the password: see the handbook",
    "out: 1 # api_key: WANDB_API_KEY, the name of a variable",
    "out: 1 # https://host:8000/tokens?page=2 tells of tokens",
    "out: 'https://git@host/repository'",
    "out: '2026-11-29T10:02:11.123456+00:00'",
    "out: 'VGhpcyBpcyBubyBzZWNyZXQgYXQgYWxs'",
]


@pytest.fixture
def leaky(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    """A catalogue in an environment with secrets."""
    for name in ("WANDB_API_KEY", "PGPASSWORD", "apiKey"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("INNOCENT", GITHUB)
    monkeypatch.setenv("COPY", SECRET)
    monkeypatch.setenv("DATABASE", f"postgres://me:{SECRET}@host/db")
    return catalogue


def _write(catalogue: Catalogue, task: str, root: str = "") -> None:
    text = f"# A recipe.\n# @package _global_\ndefaults:\n  - toy\n  - _self_\n{root}name: API\ntask:\n  {task}\n"
    (catalogue.root / "recipes" / "leak.yaml").write_text(text)


@pytest.mark.fault("secrets in recipes")
@pytest.mark.attack("interpolation", "a secret smuggled into a recipe", "refused; no verb prints it")
@pytest.mark.parametrize("way", SMUGGLED)
@pytest.mark.fast_cases(12)
def test_a_secret_is_refused_and_no_verb_prints_it(
    leaky: Catalogue, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(leaky, SMUGGLED[way])
    assert main(["check", "recipe=leak"], leaky) == 2
    for verb in ("check", "show", "diff", "plan"):
        main([verb, "recipe=leak"], leaky)
        printed = "".join(capsys.readouterr())
        assert not any(secret in printed for secret in (SECRET, GITHUB, AMAZON, ENCODED, "948271650384", "hunter2")), (
            verb
        )
        assert "leak.yaml" in printed


@pytest.mark.attack("interpolation", "a secret in an override", "refused, not repeated")
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(
    leaky: Catalogue, capsys: pytest.CaptureFixture[str]
) -> None:
    for word in (f"task.out={GITHUB}", f"'+{GITHUB}=1'", f"recipe={GITHUB}", f"optimizer={GITHUB}", f"{SECRET}=1"):
        assert main(["check", "recipe=toy", word], leaky) == 2
        assert not {GITHUB, SECRET} & set(re.findall(r"[\w-]+", "".join(capsys.readouterr()))), word


@pytest.mark.parametrize("task", INNOCENT)
@pytest.mark.fast_cases(6)
def test_innocent_recipes_raise_no_alarm(leaky: Catalogue, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    _write(leaky, task)
    main(["check", "recipe=leak"], leaky)
    assert "credential" not in "".join(capsys.readouterr())
    assert main(["show", "recipe=leak"], leaky) == 0


def test_a_false_alarm_is_silenced_by_its_key_or_variable(
    leaky: Catalogue, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAP_KEY", "roads")
    for task, name in (("out: '${oc.env:MAP_KEY}'", "MAP_KEY"), (f"out: {GITHUB}", "task.out")):
        _write(leaky, task)
        assert main(["show", "recipe=leak"], leaky) == 2
        assert "list it in not_secret" in "".join(capsys.readouterr())
        _write(leaky, task, f"not_secret: [{name}]\n")
        assert main(["show", "recipe=leak"], leaky) == 0
        capsys.readouterr()


@pytest.mark.attack("interpolation", "a secret variable that is declared innocent", "refused")
def test_a_variable_named_in_launch_secrets_is_never_innocent(
    leaky: Catalogue, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", "somewhere")
    _write(leaky, "out: '${oc.env:PLACE}'", "not_secret: [PLACE]\nlaunch: {secrets: [PLACE]}\n")
    assert main(["show", "recipe=leak"], leaky) == 2
    assert "PLACE, a secret" in "".join(capsys.readouterr())


@pytest.mark.attack("interpolation", "a secret in a comment of a preset", "refused, not repeated")
def test_a_secret_in_a_comment_of_a_preset_is_refused(leaky: Catalogue, capsys: pytest.CaptureFixture[str]) -> None:
    preset = next(file for folder in leaky.conf_folders() for file in sorted(folder.rglob("optimizer/*.yaml")))
    preset.write_text(preset.read_text() + f"# once {GITHUB}\n")
    assert main(["check", "recipe=toy"], leaky) == 2
    printed = "".join(capsys.readouterr())
    assert "the comment holds what looks like a credential" in printed
    assert GITHUB not in printed


@pytest.mark.attack("folder", "a secret in the changed code that a run keeps", "masked")
def test_a_run_keeps_no_secret_of_the_code_that_it_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "framework.run.folder._git", lambda _, *words: f"+token = '{GITHUB}'" if "diff" in words else ""
    )
    tree = {"run": {"name": "leak", "seed": 0, "folder": str(tmp_path / "leak")}}
    with open_run(tree, {}):
        pass
    assert (tmp_path / "leak" / CODE_DIFF_FILE).read_text() == f"+token = '{MASK}'"
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and GITHUB in file.read_text()]
