"""The verb `serve`: loads the model of a run or an exported folder and answers over HTTP until it is told to end."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from framework.model.vision_cache import VisionCache
from framework.serving.app import Limits, Server
from framework.serving.words import Words
from framework.serving.worker import Worker
from framework.training.ask import Asker
from framework.training.tasks.exported import load_trained

DEFAULTS = {"host": "127.0.0.1", "port": "8000", "batch_size": "16", "max_waiting": "64", "timeout_s": "60",
            "max_mb": "16", "task_tokens": "8192", "chat_tokens": "256", "cached_frames": "32",
            "api_key_env": ""}  # fmt: skip
"""The words of `serve` next to `run`, with their values unless given."""


@dataclass(frozen=True)
class Serving:
    """What the command line says."""

    run: Path
    """The run's folder, or an exported one."""
    host: str
    """Address to listen on."""
    port: int
    """Port to listen on."""
    batch_size: int
    """The most prompts of a batch."""
    max_waiting: int
    """The most prompts that wait; a request for which there is no room gets 429."""
    cached_frames: int
    """The most images, and frames of clips, whose features are kept."""
    limits: Limits
    """What a request may cost."""
    key: str | None = field(repr=False)
    """The API key, which no text of this object shows."""


def serve(words: Sequence[str]) -> int:
    """Serve the run that the command line names, until SIGTERM or SIGINT; requests in flight are answered first.

    Raises `RecipeError` for words that cannot be used.
    """
    import uvicorn

    serving = parse(words, os.environ)
    server, worker = build(serving)
    print(f"serving {server.model} at http://{serving.host}:{serving.port}", flush=True)
    config = uvicorn.Config(
        server.app, host=serving.host, port=serving.port, log_level="warning", access_log=False,
        timeout_keep_alive=30, timeout_graceful_shutdown=int(serving.limits.timeout_s) + 1,
        h11_max_incomplete_event_size=64 << 10,
    )  # fmt: skip
    try:
        uvicorn.Server(config).run()
    finally:
        worker.close()
    return 0


def parse(given: Sequence[str], environment: Mapping[str, str]) -> Serving:
    """What the words say. Raises `RecipeError` with all that cannot be used."""
    words = Words("serve", given, DEFAULTS)
    numbers = words.numbers("port", "batch_size", "max_waiting", "timeout_s", "max_mb", "task_tokens", "chat_tokens",
                            "cached_frames")  # fmt: skip
    words.filled("host", "api_key_env")  # an empty host listens on every address, an empty key lets everybody in
    name = words.values["api_key_env"]
    if name and not environment.get(name):
        words.fault("api_key_env", f"the environment has no {name}; set it to the key")
    run = words.run()
    words.refuse()
    limits = Limits(numbers["max_mb"] << 20, numbers["timeout_s"], numbers["task_tokens"], numbers["chat_tokens"])
    return Serving(run, words.values["host"], numbers["port"], numbers["batch_size"], numbers["max_waiting"],
                   numbers["cached_frames"], limits, environment.get(name) or None)  # fmt: skip


def build(serving: Serving) -> tuple[Server, Worker]:
    """The server over the run's newest checkpoint, and the thread that answers."""
    name, worker = load(serving.run, serving.batch_size, serving.max_waiting, serving.cached_frames)
    return Server(worker, name, serving.limits, serving.key), worker


def load(run: Path, batch_size: int, max_waiting: int, cached_frames: int) -> tuple[str, Worker]:
    """The name NAME@STEP of the weights of a run or its export, and a thread that answers with them; see `Worker`."""
    name, train, model = load_trained(run)
    VisionCache(model.backbone.model.visual, cached_frames)
    return name, Worker(Asker(model, train.data), batch_size, max_waiting, train.parallel.as_trained)
