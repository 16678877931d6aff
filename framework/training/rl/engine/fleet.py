"""Several vLLM servers as one engine, behind a router."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from torch import Tensor

from framework.generation.engine import Generation, Requests
from framework.generation.routing import assign
from framework.generation.vllm_client import GenerateReply, GenerateRequest, LateServerError, LostServerError
from framework.generation.vllm_media import digests
from framework.model.language_action import LanguageActionModel
from framework.recipe.component import component
from framework.training.rl.engine.first_rank import barrier, is_rank0, on_rank0
from framework.training.rl.engine.vllm import VLLMEngine

log = logging.getLogger(__name__)


@component
class EngineFleet:
    """See `framework.generation.engine.Engine`. Every server that is asked holds the present weights, and passed the
    gate.

    All answers to a prompt come from one server, chosen by `assign`. What a server that is lost has not answered goes
    to the others. It is left out until a `sync` finds it healthy; one that ended, or hangs, is started again meanwhile.
    Only where no other server is left, a `sync` waits for it. Seeds and weights decide an answer, not the server.

    Args:
        model: The live model.
        engines: The servers by name, each a partial `VLLMEngine`; those that start a server each need a folder and a
            port of their own.

    Raises `ValueError` for less than two servers.
    """

    draws_plans = False
    """Whether it also draws the plans of the model's action head."""
    own_weights = True
    """Whether it keeps a copy of the weights, with which it can generate while the model trains."""

    def __init__(
        self, model: LanguageActionModel, engines: Mapping[str, Callable[[LanguageActionModel], VLLMEngine]]
    ) -> None:
        if len(engines) < 2:
            raise ValueError(f"sampler.engines: {len(engines)}; give at least two, or stage/sampler=vllm")
        self.engines = {name: make(model) for name, make in engines.items()}
        self.lost: set[str] = set()
        self.has_synced = False
        self.router = ThreadPoolExecutor(1)

    @property
    def supports_async(self) -> bool:
        """See `AsyncEngine`."""
        return all(engine.supports_async for engine in self.engines.values())

    @property
    def _lead(self) -> VLLMEngine:
        return next(iter(self.engines.values()))

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See `Engine`: a copy on the host serves all servers. Raises `EngineError` where none is left, or one does not
        pass the gate.
        """
        held = [(name, tensor.detach().cpu()) for name, tensor in weights if is_rank0()]
        barrier()  # another rank may still wait for answers from the previous weights
        absent = {
            name for name, engine in self.engines.items() if self.has_synced and not on_rank0(engine.server.revive)
        }
        waited = [name for name in self.engines if name not in absent] or list(self.engines)  # the last are waited for
        self.has_synced, self.lost = True, set(self.engines).difference(waited)
        for name in self.lost:
            log.warning("server %s is not ready for the weights of version %d, and left out", name, version)
        failed = on_rank0(lambda: self._bring(waited, held, version))
        for name in waited:
            try:
                if name in failed:
                    raise failed[name]
                self.engines[name].check_probe(version)
            except (LostServerError, LateServerError) as error:
                self.lost.add(name)
                log.warning("%s; server %s is replaced, and left out until it is ready", error, name)
                on_rank0(self.engines[name].server.replace)
                if len(self.lost) == len(self.engines):
                    raise

    def _bring(
        self, names: Sequence[str], weights: Sequence[tuple[str, Tensor]], version: int
    ) -> dict[str, LostServerError | LateServerError]:
        """Brings the servers their weights, all at once, since one may take minutes to start. Returns the errors of
        those that are lost.

        Each has a thread that outlives the call: a server that is started ends with the thread that started it.
        """
        for name in names:
            self.engines[name].write_config()
        brought = {name: self.engines[name].background.submit(self.engines[name].bring, iter(weights), version)
                   for name in names}  # fmt: skip
        wait(brought.values())
        failed: dict[str, LostServerError | LateServerError] = {}
        for name, pending in brought.items():
            try:
                pending.result()
            except (LostServerError, LateServerError) as error:
                failed[name] = error
        return failed

    def generate(self, requests: Requests) -> list[list[Generation]]:
        """See `Engine`."""
        return self.start(requests)()

    def start(self, requests: Requests) -> Callable[[], list[list[Generation]]]:
        """See `AsyncEngine`."""
        lead = self._lead
        calls = lead.calls(requests)
        return lead.answers(requests, self.router.submit(self._answer_all, calls if lead.is_caller else ()))

    def release(self) -> None:
        """See `Engine`."""
        for engine in self.engines.values():
            engine.release()

    def health(self) -> None:
        """See `Engine`."""
        for name, engine in self.engines.items():
            if name not in self.lost:
                engine.health()

    def _answer_all(self, calls: Sequence[GenerateRequest]) -> list[GenerateReply]:
        """The replies, in order. Raises `LostServerError` where all servers are lost."""
        replies: dict[int, GenerateReply] = {}
        while len(replies) < len(calls):
            error: LostServerError | LateServerError | None = None
            for name, numbers, pending in self._send(calls, replies):
                try:
                    replies |= dict(zip(numbers, pending.result(), strict=True))
                except (LostServerError, LateServerError) as lost:
                    error = lost
                    self.lost.add(name)
                    log.warning("%s; server %s is left out until the next weights", lost, name)
            if error is not None and len(self.lost) == len(self.engines):
                raise error
        return [replies[number] for number in range(len(calls))]

    def _send(
        self, calls: Sequence[GenerateRequest], replies: Mapping[int, GenerateReply]
    ) -> list[tuple[str, list[int], Future[list[GenerateReply]]]]:
        """Sends the calls without `replies` to the servers that are left: their names, and what each was sent."""
        by_prompt: dict[tuple[tuple[int, ...], int], list[int]] = defaultdict(list)
        for number, call in enumerate(calls):
            if number not in replies:
                by_prompt[call.prompt, id(call.media)].append(number)  # all answers to a prompt share its media
        left = {name: 0 for name in self.engines if name not in self.lost}
        if by_prompt and not left:
            raise LostServerError(f"all servers ({', '.join(self.engines)}) are lost until the next weights")
        names = [prompt_name(calls[numbers[0]]) for numbers in by_prompt.values()]
        servers = assign(names, [len(numbers) for numbers in by_prompt.values()], left)
        sent: dict[str, list[int]] = defaultdict(list)
        for server, numbers in zip(servers, by_prompt.values(), strict=True):
            sent[server] += numbers
        return [(name, own, self.engines[name].submit([calls[k] for k in own])) for name, own in sent.items()]


def prompt_name(call: GenerateRequest) -> str:
    """Returns the name by which the prompt of `call` is routed: equal for equal tokens and media. Tokens alone do not
    tell scenes apart, whose pictures have the same placeholders.
    """
    return hashlib.sha256(repr((call.prompt, digests(call.media))).encode()).hexdigest()
