"""What a credential is, and that it is masked in what a process prints."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import pytest

from framework.recipe.credentials import MASK, MaskedStream, is_credential, is_secret, masked, names_secret

GITHUB = "ghp_" + "a1B2" * 9


@pytest.mark.parametrize(
    "name",
    [
        "WANDB_API_KEY",
        "HF_TOKEN",
        "DB_PASSWORD",
        "PGPASSWORD",
        "AWS_SECRET_ACCESS_KEY",
        "apiKey",
        "client-secret",
        "GOOGLE_CREDENTIALS",
        "DB_PASS",
        "MYSQL_PWD",
        "GH_PAT",
        "SENTRY_DSN",
        "TOKEN2",
        "AZURE_ACCOUNT_KEY",
        "authToken",
        "COMET_API_KEYS",
        "DB_CREDS",
        "SESSION_JWT",
        "connectionString",
        "passcode",
        "Authorization",
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert names_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "PWD",
        "TOKENIZER_PATH",
        "KEYBOARD",
        "MONKEY",
        "max_new_tokens",
        "special_tokens",
        "HOME",
        "keys",
        "SSH_KEY_PATH",
        "compass",
        "PATH",
        "PYTHONPATH",
        "author",
        "key_frames",
        "pattern",
        "token_mean",
        "AWS_ACCESS_KEY_ID",
    ],
)
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
        ("password", "hunter2", True),
        ("token", "9f3cA71be0Dd42", True),
        ("note", GITHUB, True),
        ("note", "AKIA" + "ABCDEFGH12345678", True),
        ("url", "https://user:password@host/x", True),
        ("header", "Authorization: Bearer 0123456789abcdefghij", True),
        ("storage", "DefaultEndpointsProtocol=https;AccountKey=abcdefghijklmnopqrstu==", True),
        ("api_key", "WANDB_API_KEY", False),
        ("api_key", "${oc.env:NAME}", False),
        ("api_key", None, False),
        ("sort_key", "time", False),
        ("pad_token", "<|endoftext|>", False),
        ("url", "http://127.0.0.1:8000", False),
        ("url", "s3://bucket/folder", False),
        ("weight_decay", 0.1, False),
        ("model", "Qwen/Qwen3-VL-2B-Instruct", False),
        ("special_tokens", "<|lidar_pad|><|radar_pad|>", False),
    ],
)
def test_literal_credentials(key: str, value: Any, secret: bool) -> None:
    assert is_credential(("tracking", key), value) is secret


def test_the_name_of_a_clusters_secret_is_none() -> None:
    assert not is_credential(("launch", "secret"), "team-credentials")
    assert is_credential(("launch", "secret"), GITHUB)


@pytest.mark.attack("interpolation", "secrets in text that is printed", "masked")
def test_text_is_masked_by_value_and_by_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "hunter2hunter2")
    monkeypatch.setenv("PLACE", "outputs/runs/somewhere")
    text = f"in outputs/runs/somewhere: 401 for key hunter2hunter2 and {GITHUB} at https://me:word@host/x"
    assert masked(text) == f"in outputs/runs/somewhere: 401 for key {MASK} and {MASK} at https://{MASK}@host/x"
    assert masked("of 3 steps") == "of 3 steps"
    stream = io.StringIO()
    masking = MaskedStream(stream)
    print("loss 0.5", text, file=masking)
    masking.writelines([GITHUB])
    assert stream.getvalue() == f"loss 0.5 {masked(text)}\n{MASK}"


@pytest.mark.attack("interpolation", "secrets in results, logs and tracebacks", "masked")
def test_a_process_masks_its_results_logs_and_tracebacks() -> None:
    program = (
        "import logging, os, sys\n"
        "from framework.recipe.credentials import mask_output\n"
        "mask_output()\n"
        "logging.basicConfig(stream=sys.stderr)\n"
        "logging.warning('sent %s', os.environ['COMET_API_KEY'])\n"
        "print({'key': os.environ['COMET_API_KEY']})\n"
        "raise RuntimeError('refused: ' + os.environ['COMET_API_KEY'])\n"
    )
    environment = {"COMET_API_KEY": "q8Zr2LmX0vNc7TyB", "PATH": "/bin"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert "q8Zr2LmX0vNc7TyB" not in done.stdout + done.stderr
    assert done.stdout == f"{{'key': '{MASK}'}}\n"
    assert f"sent {MASK}" in done.stderr
    assert f"RuntimeError: refused: {MASK}" in done.stderr
