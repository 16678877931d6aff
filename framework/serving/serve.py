"""The verb `serve`: loads a run's model and answers over HTTP until it is told to end."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from framework.recipe.problem import Origin, Problem, RecipeError, nearest
from framework.serving.app import Limits, Server
from framework.serving.worker import Worker
from framework.training.ask import Asker
from framework.training.build_model import build_model
from framework.training.tasks.trained_run import TrainedRun

RUNS = Path("outputs/runs")
"""Where a run is searched that is given by its name."""
LAST_PORT = 65535
COMMAND = Origin("command line")
DEFAULTS = {"host": "127.0.0.1", "port": "8000", "batch_size": "16", "max_waiting": "64", "timeout_s": "60",
            "max_mb": "16", "task_tokens": "8192", "chat_tokens": "256", "api_key_env": ""}  # fmt: skip
"""The words of `serve` next to `run`, with their values unless given."""


@dataclass(frozen=True)
class Serving:
    """What the command line says."""

    run: Path
    """The run's folder."""
    host: str
    """Address to listen on."""
    port: int
    """Port to listen on."""
    batch_size: int
    """The most prompts of a batch."""
    max_waiting: int
    """The most prompts that wait; a request for which there is no room gets 429."""
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


def parse(words: Sequence[str], environment: Mapping[str, str]) -> Serving:
    """What the words say. Raises `RecipeError` with all that cannot be used."""
    given = dict(word.split("=", 1) for word in words if "=" in word)
    problems = [Problem(COMMAND, word, "is no word of serve; give key=value") for word in words if "=" not in word]
    for key in given:
        if key not in ("run", *DEFAULTS):
            problems.append(Problem(COMMAND, key, "is no word of serve", nearest(key, ["run", *DEFAULTS])))
    values = {**DEFAULTS, **given}
    numbers: dict[str, int] = {}
    for key in ("port", "batch_size", "max_waiting", "timeout_s", "max_mb", "task_tokens", "chat_tokens"):
        if not (values[key].isascii() and values[key].isdecimal() and 0 < int(values[key]) < 1 << 20):
            problems.append(Problem(COMMAND, key, f"{values[key]!r}; give a whole number from 1 on"))
        else:
            numbers[key] = int(values[key])
    if numbers.get("port", 0) > LAST_PORT:
        problems.append(Problem(COMMAND, "port", f"{numbers['port']}; give at most {LAST_PORT}"))
    for key in ("host", "api_key_env"):  # an empty host listens on every address, an empty key lets everybody in
        if given.get(key) == "":
            problems.append(Problem(COMMAND, key, "is empty, as an unset variable is; give it, or leave it out"))
    name = values["api_key_env"]
    if name and not environment.get(name):
        problems.append(Problem(COMMAND, "api_key_env", f"the environment has no {name}; set it to the key"))
    run = Path(values.get("run", ""))
    if "run" not in given:
        problems.append(Problem(COMMAND, "run", "run=NAME is needed: a run's folder, or its name below outputs/runs"))
    elif not (run / "recipe.yaml").is_file() and not (RUNS / run / "recipe.yaml").is_file():
        problems.append(Problem(COMMAND, "run", f"{run}: is no run's folder, nor a name below {RUNS}"))
    if problems:
        raise RecipeError(problems)
    limits = Limits(numbers["max_mb"] << 20, numbers["timeout_s"], numbers["task_tokens"], numbers["chat_tokens"])
    folder = run if (run / "recipe.yaml").is_file() else RUNS / run
    return Serving(folder, values["host"], numbers["port"], numbers["batch_size"], numbers["max_waiting"], limits,
                   environment.get(name) or None)  # fmt: skip


def build(serving: Serving) -> tuple[Server, Worker]:
    """The server over the run's newest checkpoint, and the thread that answers."""
    trained = TrainedRun(str(serving.run), None)
    name, train = trained.recipe(inputs=False)
    checkpoint = trained.checkpoint()
    model = build_model(train.model, train.data.special_tokens, train.parallel)
    trained.load_weights(checkpoint, model)
    model.to(train.parallel.device).eval()
    asker = Asker(model, train.data)
    worker = Worker(asker, serving.batch_size, serving.max_waiting, train.parallel.as_trained)
    return Server(worker, f"{name}@{checkpoint.step}", serving.limits, serving.key), worker
