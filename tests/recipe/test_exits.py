"""Each secret at each exit: nothing that a process prints, writes or sends holds one, however it is dressed."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest

import framework
from framework.evaluation.page import write_page
from framework.evaluation.scene_rows import write_scene_rows
from framework.recipe.credentials import MaskedStream
from framework.run.files import append_line, write_json
from framework.run.folder import open_run
from framework.tracking.comet import CometLogger

OWN = "hunter2-Xq81LmZ0vN"
GITHUB = "ghp_" + "a1B2" * 9
PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\nAQEFAASCBKcwggSjAgEAAoIB\n-----END PRIVATE KEY-----"
SIGNED = "https://b.s3.amazonaws.com/k?X-Amz-Credential=q8Zr2LmX0vNc&X-Amz-Signature=5fe80f77d5fa3bec"
SECRETS: dict[str, tuple[str, list[str]]] = {
    "of the environment": (f"401 for {OWN}", [OWN]),
    "of the environment, in base64": (
        base64.b64encode(f"me:{OWN}".encode()).decode(),
        ["aHVudGVyMi1Y", "odW50ZXIyLVhx"],
    ),
    "of the environment, quoted": (f"at x?a={quote(OWN + '&')}", [OWN]),
    "of the environment, in hexadecimal": (OWN.encode().hex(), [OWN.encode().hex()]),
    "a line of one of several lines": ("a line: AQEFAASCBKcwggSjAgEAAoIB", ["AQEFAASCBKcwggSjAgEAAoIB"]),
    "a token": (f"remote: {GITHUB}", [GITHUB]),
    "a token in base64": (
        base64.b64encode(GITHUB.encode()).decode(),
        [base64.b64encode(GITHUB.encode()).decode()[:20]],
    ),
    "an address with a password": ("GET https://me:hun@ter9Q@host/x", ["hun@ter9Q", "ter9Q"]),
    "a signed address": (f"403 of {SIGNED}", ["q8Zr2LmX0vNc", "5fe80f77d5fa3bec"]),
    "an older signature": ("of k?AWSAccessKeyId=abcdefghij&Signature=Zq8%2BhuNter%3D", ["abcdefghij", "Zq8%2BhuNter"]),
    "basic authentication": ("Authorization: Basic bWU6aHVudGVyMg==", ["bWU6aHVudGVyMg"]),
    "a private key": (f"key {PEM}", ["MIIEvQIBADANBgkqhkiG9w0B", "AQEFAASCBKcwggSjAgEAAoIB"]),
    "a setting": ("connect(password='hunter9-Zq')", ["hunter9-Zq"]),
}
Exit = Callable[[str, Path], str]


def _printed(text: str, folder: Path) -> str:
    stream = io.StringIO()
    print(text, file=MaskedStream(stream))
    return stream.getvalue()


def _logged(text: str, folder: Path) -> str:
    stream = io.StringIO()
    handler, logger = logging.StreamHandler(MaskedStream(stream)), logging.getLogger("some.library")
    logger.addHandler(handler)
    logger.warning("retrying: %s", text)
    logger.removeHandler(handler)
    return stream.getvalue()


def _warned(text: str, folder: Path) -> str:
    stream = io.StringIO()
    print(warnings.formatwarning(text, UserWarning, "library.py", 3, f"call({text!r})"), file=MaskedStream(stream))
    return stream.getvalue()


def _traced(text: str, folder: Path) -> str:
    stream = io.StringIO()
    try:
        raise OSError(text) from ValueError({"headers": text})
    except OSError:
        traceback.print_exc(file=MaskedStream(stream))
    return stream.getvalue()


def _record(text: str, folder: Path) -> str:
    append_line(folder / "records.jsonl", json.dumps({"error": text}))
    return (folder / "records.jsonl").read_text()


def _status(text: str, folder: Path) -> str:
    write_json(folder / "status.json", {"detail": text, text: 1})
    assert json.loads((folder / "status.json").read_text())
    return (folder / "status.json").read_text()


def _page(text: str, folder: Path) -> str:
    values = {"title": text, "identity": {"run": text}, "runs": [], "differences": [], "rows": [], "note": text}
    write_page(folder / "page.html", "page.html.j2", **values)
    return (folder / "page.html").read_text()


def _scenes(text: str, folder: Path) -> str:
    write_scene_rows(folder, "drive", "open_loop", {"step": 1}, [{"scene": "a", "answer": text}])
    return "".join(file.read_text() for file in folder.rglob("*") if file.is_file())


def _run_folder(text: str, folder: Path) -> str:
    tree = {"run": {"name": "told", "seed": 0, "folder": str(folder / "told")}}
    with open_run(tree, {"run.name": f"command line run.name={text}"}, [f"task.note={text}"]):
        pass
    return "".join(file.read_text() for file in (folder / "told").rglob("*.json*"))


def _comet(text: str, folder: Path) -> str:
    sent: list[object] = []
    logger = CometLogger.__new__(CometLogger)
    logger.attempt = 1
    logger.experiment = SimpleNamespace(
        log_parameters=sent.append, log_others=sent.append, log_metrics=lambda *_, **__: None
    )
    logger.describe({"data.note": text, "lr": 0.1}, {"code": text}, 0)
    return repr(sent)


EXITS: dict[str, Exit] = {
    "standard output": _printed,
    "a library's log": _logged,
    "a library's warning": _warned,
    "a traceback with its cause": _traced,
    "a file of records": _record,
    "a file of status": _status,
    "a page": _page,
    "rows of scenes": _scenes,
    "the run's folder": _run_folder,
    "Comet": _comet,
}


@pytest.mark.fault("secrets in what leaves")
@pytest.mark.attack("interpolation", "a secret at an exit: logs, errors, records, pages, Comet", "masked")
@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("way", EXITS)
@pytest.mark.fast_cases(30)
def test_no_exit_lets_a_secret_out(way: str, secret: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", OWN)
    monkeypatch.setenv("DEPLOY_PRIVATE_KEY", PEM)
    text, parts = SECRETS[secret]
    told = EXITS[way](text, tmp_path)
    assert "***" in told
    assert not [part for part in parts if part in told], told


@pytest.mark.fault("secrets in what leaves")
def test_every_process_of_the_framework_masks_what_it_prints() -> None:
    folder = Path(framework.__file__).parent
    texts = {file.relative_to(folder).as_posix(): file.read_text() for file in folder.rglob("*.py")}
    processes = {name: text for name, text in texts.items() if 'if __name__ == "__main__":' in text}
    assert len(processes) > 5
    assert [name for name, text in processes.items() if "mask_output()" not in text] == []


@pytest.mark.fault("secrets in what leaves")
@pytest.mark.parametrize("module", ["launch.eval_jobs.watcher", "launch.preflight", "launch.supervisor.main"])
@pytest.mark.fast_cases(1)
def test_a_process_that_fails_quotes_no_secret(module: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"framework.{module}", "--folder", str(tmp_path / OWN)]
    words = ["--once"] if module.endswith("watcher") else []
    done = subprocess.run(
        [*command, *words], capture_output=True, text=True, env=os.environ | {"DEPLOY_TOKEN": OWN}, check=False
    )
    assert done.returncode
    assert "***" in done.stderr
    assert OWN not in done.stdout + done.stderr
