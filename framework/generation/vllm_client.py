"""A vLLM server over HTTP: tokens in, tokens out, weights from disk or from a process group (vLLM 0.32,
`VLLM_SERVER_DEV_MODE=1`, `--enable-scale-out --logprobs-mode processed_logprobs`).

The API moves between releases: everything that knows it is here, in `vllm_media` and in the command line that starts
the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from framework.generation.engine import EngineError
from framework.generation.vllm_media import PromptMedia, features

PREPARING_S = 600.0
"""Time-out of what a server does with its weights."""


class LostServerError(EngineError):
    """The server does not answer, or no longer: it may come back."""


@dataclass(frozen=True, slots=True)
class Question:
    """One answer asked for: the `prompt`'s token ids, what it shows, the `seed` of the draws, the `grammar` (Lark) of
    the answer if any, ids that are never drawn, at most `max_new_tokens`, at `temperature`.
    """

    prompt: tuple[int, ...]
    shown: tuple[PromptMedia, ...]
    seed: int
    grammar: str | None
    banned: Sequence[int]
    max_new_tokens: int
    temperature: float

    def body(self) -> dict[str, Any]:
        """The request."""
        sampling: dict[str, Any] = {
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "logprobs": 0,  # of the drawn token alone
            "detokenize": False,
            "logit_bias": {str(token): -100.0 for token in self.banned},
        }
        if self.grammar is not None:
            sampling["structured_outputs"] = {"grammar": self.grammar}
        return {
            "token_ids": list(self.prompt),
            "features": features(self.shown),
            "sampling_params": sampling,
            "return_token_ids": True,
        }


@dataclass(frozen=True, slots=True)
class Drawn:
    """What the server said: tokens, their log-probabilities under the distribution they were drawn from, the version
    of the weights, and the prompt as the server saw it.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    version: str
    prompt: tuple[int, ...]


class VLLMClient:
    """The server at `url`. An answer may take `timeout_s`. All methods raise `LostServerError` where there is no
    answer, and `EngineError` with the server's words where it refuses.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s

    def generate(self, question: Question) -> Drawn:
        """Draw one answer."""
        told = self._post("/inference/v1/generate", question.body(), self.timeout_s)
        choice = told["choices"][0]
        if choice["finish_reason"] not in ("stop", "length"):
            raise LostServerError(f"engine {self.url}: an answer ended by {choice['finish_reason']}")
        tokens = tuple(choice["token_ids"])
        spans = {span["version"] for span in choice["weight_versions"] or [] if span["end"] > span["start"]}
        if len(spans) != 1:
            raise LostServerError(f"engine {self.url}: an answer was drawn by weights of versions {sorted(spans)}")
        logprobs = tuple(float(one["logprob"]) for one in choice["logprobs"]["content"])
        return Drawn(tokens, logprobs, spans.pop(), tuple(told["prompt_token_ids"]))

    def serves(self) -> str:
        """The model's name."""
        return str(self._get("/v1/models")["data"][0]["id"])

    def version(self) -> str:
        """The version of the weights, "default" before any were loaded."""
        return str(self._get("/weight_info")["weight_version"])

    @contextmanager
    def renewing(self, version: str, asleep: bool) -> Iterator[None]:
        """Have the body replace the weights by those of `version`, between two answers; everything is forgotten that
        the old ones made. A server that may be `asleep` has memory for its weights in the body, and for its cache only
        afterwards.
        """
        if asleep:
            self._post("/wake_up?tags=weights", None, PREPARING_S)
        self._post("/pause?mode=wait", None, PREPARING_S)
        yield
        self._post("/reset_prefix_cache", None, PREPARING_S)
        self._post("/update_weight_version", {"new_version": version}, PREPARING_S)
        if asleep:
            self._post("/wake_up?tags=kv_cache", None, PREPARING_S)
        self._post("/resume", None, PREPARING_S)

    def load(self, folder: Path) -> None:
        """Load the weights of `folder`, which the server sees under the same path."""
        self.call("reload_weights", weights_path=str(folder))

    def call(self, method: str, **named: str | int | float) -> list[Any]:
        """What a method of each worker returns, as JSON or as text."""
        told = self._post("/collective_rpc", {"method": method, "kwargs": named}, PREPARING_S)
        found: list[Any] = told["results"]
        return found

    def workers(self) -> int:
        """How many processes hold the model, or a part of it."""
        return int(self._get("/get_world_size")["world_size"])

    def checksums(self) -> dict[str, str]:
        """SHA-256 of the bytes of each parameter as the server holds it, by rank and name."""
        found: dict[str, str] = self._post("/weight_checker", {"action": "checksum"}, PREPARING_S)["checksums"]
        return found

    def sleep(self) -> None:
        """Move the weights to the host's memory and forget everything cached (`--enable-sleep-mode`).

        Level 1: level 2 has corrupted rollouts of models that see (NeMo-RL, issue 2631).
        """
        self._post("/sleep?level=1", None, PREPARING_S)

    def health(self) -> None:
        """Raise `LostServerError` unless the server is well."""
        self._send("GET", "/health", None, 10.0)

    def wait(self, patience_s: float, hopeless: Callable[[], bool]) -> None:
        """Until the server is well, at most `patience_s` and as long as it is not `hopeless`."""
        pause = wait_random_exponential(multiplier=0.1, max=2.0)
        late = stop_after_delay(patience_s)

        def until(state: RetryCallState) -> bool:
            return hopeless() or late(state)

        for attempt in Retrying(retry=retry_if_exception_type(LostServerError), stop=until, wait=pause, reraise=True):
            with attempt:
                self.health()

    def _get(self, path: str) -> Any:
        return self._send("GET", path, None, 30.0).json()

    def _post(self, path: str, body: Mapping[str, Any] | None, timeout_s: float) -> Any:
        told = self._send("POST", path, body, timeout_s)
        return told.json() if told.content else None

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float) -> requests.Response:
        try:
            told = requests.request(method, self.url + path, json=body, timeout=(10.0, timeout_s))
        except requests.RequestException as error:
            raise LostServerError(f"engine {self.url}: no answer to {path}: {error}") from error
        if told.status_code >= 500:
            raise LostServerError(f"engine {self.url}: {path} gave {told.status_code}: {told.text[:500]}")
        if told.status_code >= 400:
            raise EngineError(f"engine {self.url}: refuses {path} ({told.status_code}): {told.text[:500]}")
        return told
