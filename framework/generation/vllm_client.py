"""The client of a vLLM server: tokens in, tokens out, weights from disk or from a process group (vLLM 0.32,
`VLLM_SERVER_DEV_MODE=1`, `--enable-scale-out --logprobs-mode processed_logprobs`).

The HTTP API changes between releases: only this module, `vllm_media` and the server's command line depend on it.
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

WEIGHTS_TIMEOUT_S = 600.0
"""Timeout of requests that move or load the server's weights."""


class LostServerError(EngineError):
    """The server does not answer, or no longer does; it may come back."""


class LateServerError(EngineError):
    """No server became ready in the time that it was given."""


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A request for one answer."""

    prompt: tuple[int, ...]
    """Token ids of the prompt."""
    media: tuple[PromptMedia, ...]
    """Images, frames of clips and rows of sensors of the prompt."""
    seed: int
    """Seed of the sampling."""
    grammar: str | None
    """Grammar (Lark) of the answer; None for free text."""
    banned: Sequence[int]
    """Token ids that are never sampled."""
    max_new_tokens: int
    """Most tokens of the answer."""
    temperature: float
    """Sampling temperature; 0 decodes greedily."""

    def body(self) -> dict[str, Any]:
        """Returns the body of the HTTP request."""
        sampling: dict[str, Any] = {
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "logprobs": 0,  # of the sampled token alone
            "detokenize": False,
            "logit_bias": {str(token): -100.0 for token in self.banned},
        }
        if self.grammar is not None:
            sampling["structured_outputs"] = {"grammar": self.grammar}
        return {
            "token_ids": list(self.prompt),
            "features": features(self.media),
            "sampling_params": sampling,
            "return_token_ids": True,
        }


@dataclass(frozen=True, slots=True)
class GenerateReply:
    """The server's answer to a `GenerateRequest`."""

    tokens: tuple[int, ...]
    """Sampled token ids."""
    logprobs: tuple[float, ...]
    """Their log-probabilities under the distribution they were sampled from."""
    version: str
    """Version of the weights that sampled them."""
    prompt: tuple[int, ...]
    """Token ids of the prompt as the server read it."""


class VLLMClient:
    """The server at `url`. All methods raise `LostServerError` where it does not answer, and `EngineError` with the
    server's message where it rejects the request.

    Args:
        url: Base URL of the server.
        timeout_s: Timeout of an answer, in seconds.
        key: The server's key, sent with every request; None for a server without one.
    """

    def __init__(self, url: str, timeout_s: float, key: str | None = None) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}

    def generate(self, question: GenerateRequest) -> GenerateReply:
        """Samples one answer."""
        reply = self._post("/inference/v1/generate", question.body(), self.timeout_s)
        choice = reply["choices"][0]
        if choice["finish_reason"] not in ("stop", "length"):
            raise LostServerError(f"engine {self.url}: an answer ended by {choice['finish_reason']}")
        tokens = tuple(choice["token_ids"])
        spans = {span["version"] for span in choice["weight_versions"] or [] if span["end"] > span["start"]}
        if len(spans) != 1:
            raise LostServerError(f"engine {self.url}: an answer was sampled by weights of versions {sorted(spans)}")
        logprobs = tuple(float(one["logprob"]) for one in choice["logprobs"]["content"])
        return GenerateReply(tokens, logprobs, spans.pop(), tuple(reply["prompt_token_ids"]))

    def model_name(self) -> str:
        """Returns the name of the served model."""
        return str(self._get("/v1/models")["data"][0]["id"])

    def version(self) -> str:
        """Returns the version of the weights; "default" before any were loaded."""
        return str(self._get("/weight_info")["weight_version"])

    @contextmanager
    def updating_weights(self, version: str, asleep: bool) -> Iterator[None]:
        """The body replaces the weights by those of `version`, between two answers; caches of the old weights are
        dropped. A server that may be `asleep` has memory for its weights in the body, and for its cache only after it.
        """
        if asleep:
            self._post("/wake_up?tags=weights", None, WEIGHTS_TIMEOUT_S)
        self._post("/pause?mode=wait", None, WEIGHTS_TIMEOUT_S)
        yield
        self._post("/reset_prefix_cache", None, WEIGHTS_TIMEOUT_S)
        self._post("/update_weight_version", {"new_version": version}, WEIGHTS_TIMEOUT_S)
        if asleep:
            self._post("/wake_up?tags=kv_cache", None, WEIGHTS_TIMEOUT_S)
        self._post("/resume", None, WEIGHTS_TIMEOUT_S)

    def load(self, folder: Path) -> None:
        """Loads the weights in `folder`, which the server sees under the same path."""
        self.call("reload_weights", weights_path=str(folder))

    def call(self, method: str, **named: str | int | float) -> list[Any]:
        """Calls a method on every worker; returns the results, as JSON or as text."""
        reply = self._post("/collective_rpc", {"method": method, "kwargs": named}, WEIGHTS_TIMEOUT_S)
        results: list[Any] = reply["results"]
        return results

    def workers(self) -> int:
        """Returns the number of processes that hold the model or a shard of it."""
        return int(self._get("/get_world_size")["world_size"])

    def checksums(self) -> dict[str, str]:
        """Returns the SHA-256 of each parameter's bytes as the server holds them, by rank and name."""
        checksums: dict[str, str] = self._post("/weight_checker", {"action": "checksum"}, WEIGHTS_TIMEOUT_S)[
            "checksums"
        ]
        return checksums

    def sleep(self) -> None:
        """Moves the weights to host memory and drops all caches (`--enable-sleep-mode`).

        Sleep level 1: level 2 has corrupted rollouts of vision models (NeMo-RL, issue 2631).
        """
        self._post("/sleep?level=1", None, WEIGHTS_TIMEOUT_S)

    def health(self) -> None:
        """Raises `LostServerError` unless the server is healthy."""
        self._send("GET", "/health", None, 10.0)

    def wait(self, patience_s: float, has_died: Callable[[], bool]) -> None:
        """Waits until the server is healthy, at most `patience_s` and only until it `has_died`."""
        pause = wait_random_exponential(multiplier=0.1, max=2.0)
        late = stop_after_delay(patience_s)

        def until(state: RetryCallState) -> bool:
            return has_died() or late(state)

        for attempt in Retrying(retry=retry_if_exception_type(LostServerError), stop=until, wait=pause, reraise=True):
            with attempt:
                self.health()

    def _get(self, path: str) -> Any:
        return self._send("GET", path, None, 30.0).json()

    def _post(self, path: str, body: Mapping[str, Any] | None, timeout_s: float) -> Any:
        reply = self._send("POST", path, body, timeout_s)
        return reply.json() if reply.content else None

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float) -> requests.Response:
        try:
            reply = requests.request(
                method,
                self.url + path,
                json=body,
                headers=self._headers,
                timeout=(10.0, timeout_s),
                allow_redirects=False,  # the key is for this server alone
            )
        except requests.RequestException as error:
            raise LostServerError(f"engine {self.url}: no answer to {path}: {error}") from error
        if reply.status_code >= 500:
            raise LostServerError(f"engine {self.url}: {path} gave {reply.status_code}: {reply.text[:500]}")
        if reply.status_code == 401:
            raise EngineError(
                f"engine {self.url}: {path} needs the server's key; export VLLM_API_KEY as the server has it"
            )
        if reply.status_code >= 300:
            raise EngineError(f"engine {self.url}: rejects {path} ({reply.status_code}): {reply.text[:500]}")
        return reply
