"""The served page in a real browser: a person picks a scene of the world and sees what the model makes of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlencode

import pytest
import requests
import uvicorn

from framework.serving.app import Server
from framework.training.ask import Asker
from tests.evaluation.test_pages_in_browser import BROWSER, opened
from tests.serving.conftest import serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed"),
]


class Form(HTMLParser):
    """What a browser sends when the page's form is submitted as it stands, and what can be picked."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.fields, self.kinds = dict[str, str](), list[str]()
        self._picked: bool | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "form":
            assert (given["method"], given["action"]) == ("get", "/")
        if tag == "input":
            self.fields[str(given["name"])] = str(given["value"])
        if tag == "option":
            self._picked = "selected" in given

    def handle_data(self, data: str) -> None:
        if self._picked is not None and data.strip():
            self.kinds.append(data.strip())
            if self._picked:
                self.fields["kind"] = data.strip()
            self._picked = None


@contextmanager
def listening(server: Server) -> Iterator[str]:
    """The address of a server on loopback."""
    running = uvicorn.Server(uvicorn.Config(server.app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join()
        server.worker.close()


def test_a_scene_is_picked_and_shown_without_a_complaint(asker: Asker, tmp_path: Path) -> None:
    with listening(serving(asker)) as address:
        complaints, before = opened(f"{address}/", tmp_path / "form.png")
        assert complaints == []
        form = Form(requests.get(f"{address}/", timeout=60).text)
        assert form.fields["kind"] in form.kinds
        picked = form.fields | {"kind": form.kinds[-1], "seed": "4"}
        complaints, after = opened(f"{address}/?{urlencode(picked)}", tmp_path / "scene.png")
        assert complaints == []
        shown = Form(requests.get(f"{address}/?{urlencode(picked)}", timeout=60).text)
        assert shown.fields == picked, "the form keeps what was picked"
        wrong, _ = opened(f"{address}/?kind=curve&seed=x", tmp_path / "wrong.png")
        assert wrong == []
    colours = [image.convert("RGB").getcolors(maxcolors=1 << 24) or [] for image in (before, after)]
    assert len(colours[1]) > 2 * len(colours[0]), "camera, road and answers are drawn"
