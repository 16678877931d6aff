"""A server over an untrained tiny model, once a module, and one whose answers are canned."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import pytest
import torch
import uvicorn
from starlette.testclient import TestClient

from framework.data.render.sample import Sample
from framework.data.render.tasks import Task
from framework.recipe.catalogue import Catalogue
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.scene.types import Scene
from framework.scene.world.generate import generate_scene
from framework.serving.app import Limits, Server
from framework.serving.worker import Worker
from framework.training.ask import Asker, Reply

LIMITS = Limits(body_bytes=1 << 20, timeout_s=20.0, task_tokens=130, chat_tokens=12)


class CannedAsker(Asker):
    """Renders prompts as the model's, and answers each with an empty text at once."""

    def answer(
        self, prompts: Sequence[Sample], max_new_tokens: int, tasks: Sequence[Task] | None = None
    ) -> list[Reply]:
        return [Reply("", None, 0.0, (), True, 0.0, 1) for _ in prompts]


@pytest.fixture(scope="session")
def asker() -> Asker:
    train = instantiate(compose(["recipe=demo", "scale=tiny"], Catalogue()), inputs=False)
    torch.manual_seed(0)
    model = train.model(special_tokens=train.data.special_tokens).eval()
    return Asker(model, train.data)


def serving(asker: Asker, limits: Limits = LIMITS, key: str | None = None, max_waiting: int = 64) -> Server:
    return Server(Worker(asker, 8, max_waiting, nullcontext), "tiny@0", limits, key)


@contextmanager
def on_loopback(server: Server) -> Iterator[int]:
    """The port at which the server listens."""
    listening = uvicorn.Server(uvicorn.Config(server.app, port=0, log_level="warning"))
    thread = threading.Thread(target=listening.run)
    thread.start()
    while not listening.started:
        time.sleep(0.005)
    try:
        yield listening.servers[0].sockets[0].getsockname()[1]
    finally:
        listening.should_exit = True
        thread.join()
        server.worker.close()


@pytest.fixture
def client(asker: Asker) -> Iterator[TestClient]:
    """Of a server over the model."""
    server = serving(asker)
    with TestClient(server.app, raise_server_exceptions=False) as client:
        yield client
    server.worker.close()


@pytest.fixture(scope="module")
def canned(asker: Asker) -> Iterator[TestClient]:
    """Of a server that renders as the model does and answers at once."""
    server = serving(CannedAsker(asker.model, asker.data))
    with TestClient(server.app, raise_server_exceptions=False) as client:
        yield client
    server.worker.close()


@pytest.fixture(scope="session")
def scene() -> Scene:
    return generate_scene(3, "curve")
