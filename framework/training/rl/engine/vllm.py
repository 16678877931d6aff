"""The engine that samples from a vLLM server, and compares the server with the trainer at every `sync`."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt
from torch import Tensor
from torch.distributed.tensor import DTensor

from framework.generation.engine import EngineError, Generation, Requests
from framework.generation.vllm_client import GenerateReply, GenerateRequest, LostServerError
from framework.generation.vllm_media import PromptMedia, frames_of, placed, sensor_items
from framework.model.codecs.grammar import GrammarMatchers, banned_ids
from framework.model.hf_export import tokens_of
from framework.model.language_action import LanguageActionModel
from framework.parallel.mesh import tensor_group
from framework.recipe.component import component
from framework.recipe.ranges import Count, PositiveCount, PositiveWeight, Seconds, Wait
from framework.training.rl.engine.first_rank import barrier, is_rank0, on_rank0
from framework.training.rl.engine.vllm_process import VLLMProcess
from framework.training.rl.engine.vllm_server import server_of
from framework.training.rl.engine.weight_transfer import ARCHITECTURE, Transfer, WeightFiles, served_name

log = logging.getLogger(__name__)

PROBE = "The light is red and the road is wet: stop, wait, then turn left."
PROBE_TOKENS = 8
"""Tokens sampled after the probe."""
EMPTY_CHECKSUM = hashlib.sha256().hexdigest()
"""The checksum of a parameter whose data the server keeps in another form, as matrix products on a CPU do."""


@component
class VLLMEngine:
    """See `framework.generation.engine.Engine`.

    The engine gate: at every `sync` the server must report the version it was given, hold the bytes it was given
    wherever it keeps them unchanged, read the token ids that it is sent, and give a probe log-probabilities close to
    the model's own. Every answer must come from weights of the present version.

    A server that is lost is waited for; it gets the weights again, and the requests that it has not answered. Images
    and clips are sent as the processor made them, sensors as rows, which the server's encoders read: its environment
    needs `plugins/vllm_plugin` for a model with encoders. The server samples: equal seeds give equal answers as far as
    its arithmetic does not depend on what shares its batches.

    Args:
        model: The live model, which the gate compares with.
        url: Base URL of the server.
        folder: Where the weights are written; the server sees it under the same path.
        dtype: Name of the server's dtype.
        transfer: Brings each version of the weights to the server.
        process: Starts the server, and starts it again when it has died. None, or one without a python, waits for a
            server that somebody else runs, and sends it the key in the variable `VLLM_API_KEY`.
        max_concurrency: Requests in flight.
        timeout_s: Timeout of an answer, in seconds.
        patience_s: Longest wait for a server that starts or comes back, in seconds.
        revivals: Times that a lost server is waited for within one call.
        max_logprob_gap: Largest mean gap between the log-probabilities of engine and trainer for the probe, in nats a
            token.
        sleeps: Whether the server shares the trainer's GPUs: it sleeps from `release` until `sync`, which wakes it to
            load the weights, and then wakes its cache.
    """

    draws_plans = False
    """Whether it also draws the plans of the model's action head."""
    own_weights = True
    """Whether it keeps a copy of the weights, with which it can generate while the model trains."""

    def __init__(
        self,
        model: LanguageActionModel,
        url: str,
        folder: str,
        dtype: str,
        transfer: Transfer,
        process: VLLMProcess | None = None,
        max_concurrency: PositiveCount = 64,
        timeout_s: Seconds = 300.0,
        patience_s: Wait = 900.0,
        revivals: Count = 3,
        max_logprob_gap: PositiveWeight = 0.05,
        sleeps: bool = False,
    ) -> None:
        if model.family.network_class().__name__ != ARCHITECTURE:
            raise EngineError(
                f"engine vllm: it serves Qwen3-VL, the backbone is a {model.family.name}; take the embedded engine "
                "(stage/sampler=embedded)"
            )
        self.model = model
        self.folder = Path(folder).resolve()
        self.files = WeightFiles(self.folder, getattr(torch, dtype))
        self.transfer = transfer
        self.server = server_of(url, self.folder, process, timeout_s, patience_s)
        self.client = self.server.client
        self.max_concurrency, self.revivals = max_concurrency, revivals
        self.max_logprob_gap = max_logprob_gap
        self.sleeps = sleeps
        self.background = ThreadPoolExecutor(1)
        self.version = -1
        self.banned = tuple(banned_ids(model.processor.tokenizer, model.vocabulary))
        self.tokens_of = tokens_of(model)

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See `Engine`. Raises on all ranks `LostServerError` for a server that is lost meanwhile, `LateServerError`
        for one that is not ready in time, and `EngineError` where the server does not pass the gate.
        """
        barrier()  # another rank may still wait for answers from the previous weights
        on_rank0(self.write_config)
        if not is_rank0():
            for _ in weights:  # whole tensors are gathered from all ranks
                pass
        on_rank0(lambda: self._bring_all(weights, version))
        self.check_probe(version)

    @property
    def supports_async(self) -> bool:
        """See `AsyncEngine`: False for a server that sleeps while the model is trained."""
        return not self.sleeps

    def generate(self, requests: Requests) -> list[list[Generation]]:
        """See `Engine`."""
        return self.start(requests)()

    def start(self, requests: Requests) -> Callable[[], list[list[Generation]]]:
        """See `AsyncEngine`: prompts are encoded before the call returns, the server is waited for in a thread. All
        ranks of a tensor-parallel group get the answers of its first rank.
        """
        calls = self.calls(requests)
        return self.answers(requests, self.submit(calls if self.is_caller else ()))

    @property
    def is_caller(self) -> bool:
        """Whether this rank asks the server, for its tensor-parallel group."""
        group = tensor_group(self.model)
        return group is None or dist.get_rank(group) == 0

    def calls(self, requests: Requests) -> list[GenerateRequest]:
        """Returns the calls of the server that `requests` need, prompt by prompt, with encoded prompts."""
        prompts = list(self._prompts(requests))
        return [
            GenerateRequest(ids, media, seed, grammar, self.banned, requests.max_new_tokens, requests.temperature)
            for (ids, media), grammar, seeds in zip(prompts, requests.grammars, requests.seeds, strict=True)
            for seed in seeds
        ]

    def submit(self, calls: Sequence[GenerateRequest]) -> Future[list[GenerateReply]]:
        """Has the server answer `calls` in a thread. The future raises `LostServerError` for a server that is lost more
        often than `revivals` allows.
        """
        return self.background.submit(self._generate_all, calls)

    def answers(self, requests: Requests, pending: Future[list[GenerateReply]]) -> Callable[[], list[list[Generation]]]:
        """Returns a function that waits for the replies to the calls of `requests`, on all ranks of a tensor-parallel
        group.
        """
        group = tensor_group(self.model)

        def wait() -> list[list[Generation]]:
            results = [pending.result()]
            if group is not None:
                dist.broadcast_object_list(results, group=group, group_src=0)
            replies = iter(results[0])
            groups = zip(requests.grammars, requests.seeds, strict=True)
            return [[self._generation(next(replies), grammar) for _ in seeds] for grammar, seeds in groups]

        return wait

    def release(self) -> None:
        """See `Engine`: the server sleeps once no rank waits for answers. A lost server holds no memory."""
        if self.sleeps:
            barrier()
            if is_rank0():
                try:
                    self.client.sleep()
                except LostServerError as error:
                    log.warning("%s: it is started again at the next sync", error)

    def health(self) -> None:
        """See `Engine`."""
        self.client.health()

    # Weights

    def write_config(self) -> None:
        """Writes what the server reads before its first weights. Not for several threads at once: Python 3.11 cannot
        parse the encoders' code in two of them (python/cpython#106905).
        """
        if self.version < 0:
            self.files.write_config(self.model)

    def _bring_all(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """As `bring`. Where that fails the rest of the weights is gathered all the same, as the other ranks do."""
        left = iter(weights)
        try:
            self.bring(left, version)
        finally:
            for _ in left:
                pass

    def bring(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Brings the server its weights, on rank 0; starts it first where it has to. Raises as `sync` does."""
        self.version = version
        self._ensure_weights(self.transfer.send(weights, version, self.client, self.files, self.sleeps))

    def _ensure_weights(self, arrived: bool) -> None:
        """Waits until the server holds the present weights. Loads them from disk unless they have `arrived`, and again
        for a server that was lost since.
        """
        if arrived:
            try:
                self._check_weights()
                return
            except LostServerError as error:
                log.warning("%s: it gets the weights again", error)
        self._load()

    def _load(self) -> None:
        """Waits for the server, which then loads the present weights from disk."""
        tries = stop_after_attempt(self.revivals + 1)
        for attempt in Retrying(retry=retry_if_exception_type(LostServerError), stop=tries, reraise=True):
            with attempt:
                folder = self.files.wait_for(self.version, self.server.patience_s)
                self.server.ensure()
                with self.client.updating_weights(str(self.version), self.sleeps):
                    self.client.load(folder)
                self._check_weights()

    def _check_weights(self) -> None:
        """Raises `EngineError` unless the server holds the weights that it was given."""
        if (version := self.client.version()) != str(self.version):
            raise EngineError(f"engine gate: the engine has weights of version {version}, it was given {self.version}")
        if self.files.digests and (wrong := self._changed_weights()):
            raise EngineError(
                f"engine gate, version {self.version}: the engine holds other bytes of {len(wrong)} weights than it "
                f"was given ({', '.join(wrong[:3])}, ...); does it serve another type than sampler.dtype, "
                f"{self.files.dtype}, or read another folder?"
            )

    def _changed_weights(self) -> list[str]:
        """Names of the parameters that the server keeps whole and unchanged, yet with other bytes."""
        checksums = self.client.checksums()
        one_rank = len({name.rpartition(":")[0] for name in checksums}) == 1
        held = [(name.rpartition(":")[2], digest) for name, digest in checksums.items() if digest != EMPTY_CHECKSUM]
        given = {served_name(name): digest for name, digest in self.files.digests.items()}
        comparable = [(name, digest) for name, digest in held if name in given and (one_rank or "norm" in name)]
        if not comparable:
            raise EngineError("engine gate: the engine's parameters have unknown names; pin vLLM to 0.32")
        return [name for name, digest in comparable if digest != given[name]]

    # Answers

    def _generate_all(self, calls: Sequence[GenerateRequest]) -> list[GenerateReply]:
        """Returns the replies, in order. A server that was lost is sent the unanswered requests again."""
        replies: dict[int, GenerateReply] = {}
        error: LostServerError | None = None
        for _ in range(self.revivals + 1):
            error = self._try_all(calls, replies, error is not None)
            if error is None:
                return [replies[number] for number in range(len(calls))]
            log.warning("%s; %d of %d requests are answered", error, len(replies), len(calls))
        raise LostServerError(f"{error}; lost {self.revivals + 1} times in one call (sampler.revivals): see its log")

    def _try_all(
        self, calls: Sequence[GenerateRequest], replies: dict[int, GenerateReply], was_lost: bool
    ) -> LostServerError | None:
        """Adds the missing `replies`, after a revival where the server `was_lost`. Returns the error if it is lost."""
        error: LostServerError | None = None
        missing = [number for number in range(len(calls)) if number not in replies]
        try:
            if was_lost:
                self._revive()
        except LostServerError as again:
            return again
        with ThreadPoolExecutor(self.max_concurrency) as pool:
            results = pool.map(self._generate_one, [calls[number] for number in missing])
            for number, result in zip(missing, results, strict=True):
                if isinstance(result, LostServerError):
                    error = result
                else:
                    replies[number] = result
        return error

    def _generate_one(self, call: GenerateRequest) -> GenerateReply | LostServerError:
        try:
            reply = self.client.generate(call)
        except LostServerError as error:
            return error
        if reply.prompt != call.prompt:
            raise EngineError(
                f"engine gate: the engine read {len(reply.prompt)} token ids, it was sent {len(call.prompt)} or others"
            )
        if reply.version != str(self.version):
            return LostServerError(
                f"engine {self.client.url}: has weights of version {reply.version}, not {self.version}"
            )
        return reply

    def _revive(self) -> None:
        """Waits until the server is back with the present weights. Any rank makes it load them, because the first may
        by then wait for the others.
        """
        self.server.ensure()
        if self.client.version() != str(self.version):
            self._load()

    def _generation(self, reply: GenerateReply, grammar: str | None) -> Generation:
        """Returns the reply as the embedded engine would give it: without what follows a completed grammar."""
        tokenizer = self.model.processor.tokenizer
        form = GrammarMatchers(tokenizer, [grammar], self.model.vocabulary, torch.device("cpu"))
        count = sum(form.accept(0, token) for token in reply.tokens)
        tokens = reply.tokens[:count]
        ended = bool(tokens) and tokens[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(list(tokens[:-1] if ended else tokens), skip_special_tokens=False)
        return Generation(tokens, reply.logprobs[:count], text, form.done[0], int(reply.version))

    def _prompts(self, requests: Requests) -> Iterator[tuple[tuple[int, ...], tuple[PromptMedia, ...]]]:
        """Yields each prompt's token ids and its media."""
        batch, config = requests.prompts, self.model.backbone.config
        supply = {
            config.image_token_id: frames_of(batch, "pixel_values", "image_grid_thw"),
            config.video_token_id: frames_of(batch, "pixel_values_videos", "video_grid_thw"),
        }
        for name, rows in batch.get("sensors", {}).items():
            supply[self.model.placeholder_ids[name]] = sensor_items(name, rows, self.tokens_of[name])
        for ids, real in zip(batch["input_ids"].cpu(), batch["attention_mask"].cpu(), strict=True):
            prompt = ids[real.bool()].tolist()
            yield tuple(prompt), tuple(placed(prompt, supply))

    # The gate

    @torch.no_grad()
    def check_probe(self, version: int) -> None:
        """Compares log-probabilities of a short continuation, as the server that has the weights of `version` gives
        them, with the model's, on all ranks. Raises `EngineError`.
        """
        self.version = version
        ids = tuple(self.model.processor.tokenizer(PROBE)["input_ids"])
        call = GenerateRequest(
            ids, (), seed=1, grammar=None, banned=self.banned, max_new_tokens=PROBE_TOKENS, temperature=1.0
        )
        reply = on_rank0(lambda: self._generate_all([call])[0])  # a tensor-parallel group scores the same tokens
        device = next(self.model.parameters()).device
        row = torch.tensor([[*ids, *reply.tokens]], device=device)
        training = self.model.training
        self.model.eval()
        batch = {"input_ids": row, "attention_mask": torch.ones_like(row), "mm_token_type_ids": torch.zeros_like(row)}
        logits = self.model.head(self.model(batch)[0, len(ids) - 1 : -1])
        logits = (logits.full_tensor() if isinstance(logits, DTensor) else logits).float()
        self.model.train(training)
        logits[:, list(self.banned)] = -torch.inf
        own = logits.log_softmax(dim=-1).gather(-1, row[0, len(ids) :, None])[:, 0].cpu()
        gap = float((own - torch.tensor(reply.logprobs)).abs().mean())
        if not gap <= self.max_logprob_gap:
            raise EngineError(
                f"engine gate, version {self.version}: the log-probabilities of engine and trainer differ by "
                f"{gap:.3g} nats a token, sampler.max_logprob_gap allows {self.max_logprob_gap:g}; the engine has "
                "other weights or another precision"
            )
