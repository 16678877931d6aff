"""The engine that samples from a vLLM server, with a parity gate at every synchronisation."""

from __future__ import annotations

import atexit
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt
from torch import Tensor
from torch.distributed.tensor import DTensor

from framework.generation.engine import EngineError, Generation, Requests
from framework.generation.vllm_client import Drawn, LostServerError, Question, VLLMClient
from framework.generation.vllm_media import PromptMedia
from framework.model.codecs.grammar import BANNED_TOKENS, GrammarMatchers
from framework.model.language_action import LanguageActionModel
from framework.parallel.mesh import tensor_group
from framework.training.rl.engine.vllm_process import LOG, VLLMProcess
from framework.training.rl.engine.weight_transfer import Transfer, WeightFiles
from framework.training.to_device import to_device

log = logging.getLogger(__name__)

PROBE = "The light is red and the road is wet: stop, wait, then turn left."
PROBED = 8
"""Tokens that the probe draws."""
NOTHING = hashlib.sha256().hexdigest()
"""The checksum of a parameter whose data the server keeps in another form: a CPU's matrix products do."""


class VLLMEngine:
    """See `framework.generation.engine.Engine`.

    The server at `url` is `process`'s, which is started, and started again when it has died; or, where that names no
    python, somebody else's, which is waited for. It begins with what is in `folder`, and is given every version of the
    weights in `dtype` by `transfer`. `max_concurrency` answers are asked for at a time, each within `timeout_s`; a
    server that is lost is waited for `patience_s`, at most `revivals` times a call: it is given the weights again, and
    asked for what it had not answered. With `sleeps` it shares the trainer's GPUs: it sleeps from `release` on, until
    `sync` wakes its weights to be loaded, and its cache after that.

    The gate: at every synchronisation the server must tell the version it was given, hold the bytes it was given
    wherever it holds them as they are, see the token ids that it is sent, and give a probe's answer log-probabilities
    within `max_logprob_gap` (nats a token) of the model's own. Every answer must come from weights of the present
    version.

    Images are sent as the processor made them, sensors as the model's encoders made them, a place of the prompt each;
    video clips are not. Draws are the server's own: equal seeds give equal answers as far as its arithmetic does not
    depend on what is computed beside them.
    """

    def __init__(
        self,
        model: LanguageActionModel,
        url: str,
        folder: str,
        dtype: str,
        transfer: Transfer,
        process: VLLMProcess | None = None,
        max_concurrency: int = 64,
        timeout_s: float = 300.0,
        patience_s: float = 900.0,
        revivals: int = 3,
        max_logprob_gap: float = 0.05,
        sleeps: bool = False,
    ) -> None:
        self.model = model
        self.client = VLLMClient(url, timeout_s)
        self.folder = Path(folder).resolve()
        self.files = WeightFiles(self.folder, getattr(torch, dtype))
        self.transfer = transfer
        self.process = process if process is not None and process.python is not None else None
        self.max_concurrency, self.patience_s, self.revivals = max_concurrency, patience_s, revivals
        self.max_logprob_gap = max_logprob_gap
        self.sleeps = sleeps
        self.waiting = ThreadPoolExecutor(1)
        self.version = -1
        tokenizer = model.processor.tokenizer
        spare = range(len(tokenizer), model.vocabulary)
        self.banned = (*tokenizer.convert_tokens_to_ids(list(BANNED_TOKENS)), *spare)

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See `Engine`. Raises `EngineError` where the server does not pass the gate."""
        _meet()  # another rank may still wait for answers of the weights before
        if _first():
            if self.version < 0:
                self.files.describe(self.model)
            self.version = version
            arrived = self.transfer.send(weights, version, self.client, self.files, self.sleeps)
            self._settle(arrived)
        else:
            self.version = version
            for _ in weights:  # whole tensors are gathered from all ranks
                pass
        _meet()
        self._probe()

    @property
    def supports_async(self) -> bool:
        """See `AsyncEngine`: not when it sleeps while the model is trained."""
        return not self.sleeps

    def generate(self, requests: Requests) -> list[list[Generation]]:
        """See `Engine`."""
        return self.start(requests)()

    def start(self, requests: Requests) -> Callable[[], list[list[Generation]]]:
        """See `AsyncEngine`: prompts are encoded at once, the server is waited for elsewhere. RankGroup of one
        tensor-parallel group train the answers of its first.
        """
        prompts = list(self._prompts(requests))
        questions = [
            Question(ids, shown, seed, grammar, self.banned, requests.max_new_tokens, requests.temperature)
            for (ids, shown), grammar, seeds in zip(prompts, requests.grammars, requests.seeds, strict=True)
            for seed in seeds
        ]
        group = tensor_group(self.model)
        asks = group is None or dist.get_rank(group) == 0
        coming = self.waiting.submit(self._answers, questions if asks else ())

        def answers() -> list[list[Generation]]:
            told = [coming.result()]
            if group is not None:
                dist.broadcast_object_list(told, group=group, group_src=0)
            drawn = iter(told[0])
            forms = zip(requests.grammars, requests.seeds, strict=True)
            return [[self._generation(next(drawn), grammar) for _ in seeds] for grammar, seeds in forms]

        return answers

    def release(self) -> None:
        """See `Engine`: once no rank waits for answers, the server sleeps. One that is lost holds no memory."""
        if self.sleeps:
            _meet()
            if _first():
                try:
                    self.client.sleep()
                except LostServerError as error:
                    log.warning("%s: it is started again at the next synchronisation", error)

    def health(self) -> None:
        """See `Engine`."""
        self.client.health()

    # Weights

    def _settle(self, arrived: bool) -> None:
        """Until the server holds the present weights. One that is lost when they have `arrived` is given them again."""
        if arrived:
            try:
                self._check()
                return
            except LostServerError as error:
                log.warning("%s: it is given the weights again", error)
        self._load()

    def _load(self) -> None:
        """Have the server, once it is there, load the present weights from the disk."""
        tries = stop_after_attempt(self.revivals + 1)
        for attempt in Retrying(retry=retry_if_exception_type(LostServerError), stop=tries, reraise=True):
            with attempt:
                folder = self.files.awaited(self.version, self.patience_s)
                self._serve()
                with self.client.renewing(str(self.version), self.sleeps):
                    self.client.load(folder)
                self._check()

    def _check(self) -> None:
        """Raise `EngineError` unless the server holds the weights that it was given."""
        if (told := self.client.version()) != str(self.version):
            raise EngineError(f"parity gate: the engine has weights of version {told}, it was given {self.version}")
        if self.files.digests and (wrong := self._other_bytes()):
            raise EngineError(
                f"parity gate, version {self.version}: the engine holds other bytes of {len(wrong)} weights than it "
                f"was given ({', '.join(wrong[:3])}, ...); does it serve another type than engine.dtype, "
                f"{self.files.dtype}, or read another folder?"
            )

    def _other_bytes(self) -> list[str]:
        """Parameters that the server holds whole and as they were written, but with other bytes."""
        held = self.client.checksums()
        whole = len({name.rpartition(":")[0] for name in held}) == 1
        found = [(name.rpartition(":")[2], digest) for name, digest in held.items() if digest != NOTHING]
        given = {served_name(name): digest for name, digest in self.files.digests.items()}
        known = [(name, digest) for name, digest in found if name in given and (whole or "norm" in name)]
        if not known:
            raise EngineError("parity gate: the engine's parameters have names that are not known; pin vLLM to 0.32")
        return [name for name, digest in known if digest != given[name]]

    def _serve(self) -> None:
        """See that the server is there. Raises `EngineError` when it is not in time, or is another's."""
        if not self._is_well():
            self._await()
        if self.process is not None and (other := self.client.serves()) != str(self.folder):
            raise EngineError(f"engine {self.client.url}: serves {other}, not {self.folder}; give another port")

    def _await(self) -> None:
        """Until the server is well; one that has ended, or that ends meanwhile, is started again, once by each rank."""
        started = False
        while True:
            if self.process is not None and self.process.start(self.folder, self.client.url):
                atexit.register(self.process.stop)
                started = True
            try:
                self.client.wait(self.patience_s, self._is_hopeless)
                return
            except LostServerError as error:
                if self._is_hopeless() and not started:
                    continue
                where = "start one" if self.process is None else f"see {self.folder / LOG}"
                raise EngineError(
                    f"{error}; waited in vain, {self.patience_s:g} s at most: {where} (--model {self.folder})"
                ) from error

    def _is_well(self) -> bool:
        try:
            self.client.health()
        except LostServerError:
            return False
        return True

    def _is_hopeless(self) -> bool:
        """Whether no server that a rank of this node started lives."""
        return self.process is not None and self.process.ended(self.folder)

    # Answers

    def _answers(self, questions: Sequence[Question]) -> list[Drawn]:
        """The answers, in order. When the server is lost, what it had not answered is asked again once it is back."""
        answers: dict[int, Drawn] = {}
        error: LostServerError | None = None
        for _ in range(self.revivals + 1):
            error = self._try(questions, answers, error is not None)
            if error is None:
                return [answers[number] for number in range(len(questions))]
            log.warning("%s; %d of %d answers are there", error, len(answers), len(questions))
        raise EngineError(f"{error}; lost {self.revivals + 1} times in one call (engine.revivals): see its log")

    def _try(self, questions: Sequence[Question], answers: dict[int, Drawn], was_lost: bool) -> LostServerError | None:
        """Fill in `answers` that are missing, after a revival where the server `was_lost`; how it was lost, if so."""
        error: LostServerError | None = None
        open_ = [number for number in range(len(questions)) if number not in answers]
        try:
            if was_lost:
                self._revive()
        except LostServerError as again:
            return again
        with ThreadPoolExecutor(self.max_concurrency) as pool:
            for number, found in zip(open_, pool.map(self._ask, [questions[n] for n in open_]), strict=True):
                if isinstance(found, LostServerError):
                    error = found
                else:
                    answers[number] = found
        return error

    def _ask(self, question: Question) -> Drawn | LostServerError:
        try:
            drawn = self.client.generate(question)
        except LostServerError as error:
            return error
        if drawn.prompt != question.prompt:
            raise EngineError(
                f"parity gate: the engine read {len(drawn.prompt)} token ids, it was sent {len(question.prompt)} or "
                "others"
            )
        if drawn.version != str(self.version):
            return LostServerError(
                f"engine {self.client.url}: has weights of version {drawn.version}, not {self.version}"
            )
        return drawn

    def _revive(self) -> None:
        """Until the server is back with the present weights. Any rank gives it these: the first may be waiting for the
        others by then.
        """
        self._serve()
        if self.client.version() != str(self.version):
            self._load()

    def _generation(self, drawn: Drawn, grammar: str | None) -> Generation:
        """The answer as our own sampler would tell it: what a complete grammar is followed by is not part of it."""
        tokenizer = self.model.processor.tokenizer
        form = GrammarMatchers(tokenizer, [grammar], self.model.vocabulary, torch.device("cpu"))
        count = sum(form.accept(0, token) for token in drawn.tokens)
        tokens = drawn.tokens[:count]
        said = tokens[:-1] if tokens and tokens[-1] == tokenizer.eos_token_id else tokens
        text = tokenizer.decode(list(said), skip_special_tokens=False)
        return Generation(tokens, drawn.logprobs[:count], text, form.done[0], int(drawn.version))

    @torch.no_grad()
    def _prompts(self, requests: Requests) -> Iterator[tuple[tuple[int, ...], tuple[PromptMedia, ...]]]:
        """Each prompt's token ids and what it shows. Raises `EngineError` for a clip."""
        batch = to_device(requests.prompts, next(self.model.parameters()).device)
        if "pixel_values_videos" in batch:
            raise EngineError("engine vllm: takes no video clips; set data.video_frames=1, or the embedded engine")
        vision = self.model.backbone.config.vision_config
        picture = self.model.backbone.config.image_token_id
        # The vision tower's features of several depths are added at images alone: nothing of them here.
        rest = len(vision.deepstack_visual_indexes)
        embedded = self.model.embed(batch).to(self.files.dtype).cpu() if batch.get("sensors") else None
        images = _images(batch, vision.spatial_merge_size)
        sensed = set(self.model.placeholder_ids.values())
        for row, (ids, real) in enumerate(zip(batch["input_ids"].cpu(), batch["attention_mask"].cpu(), strict=True)):
            prompt, begin, shown, place = ids[real.bool()].tolist(), int((real == 0).sum()), [], 0
            while place < len(prompt):
                one = None
                if prompt[place] == picture:
                    one = replace(next(images), offset=place)
                elif prompt[place] in sensed and embedded is not None:
                    deep = torch.cat([embedded[row, begin + place], embedded.new_zeros(rest * embedded.shape[-1])])
                    one = PromptMedia(place, 1, (1, *[vision.spatial_merge_size] * 2), embedding=deep)
                shown += [one] if one else []
                place += one.length if one else 1
            yield tuple(prompt), tuple(shown)

    # The gate

    @torch.no_grad()
    def _probe(self) -> None:
        """Have a few words continued, and look what the model itself says of that."""
        ids = tuple(self.model.processor.tokenizer(PROBE)["input_ids"])
        question = Question(ids, (), seed=1, grammar=None, banned=self.banned, max_new_tokens=PROBED, temperature=1.0)
        told = [self._answers([question])[0] if _first() else None]
        if dist.is_initialized():
            dist.broadcast_object_list(told)  # a tensor-parallel group scores the same tokens
        (drawn,) = told
        assert drawn is not None
        device = next(self.model.parameters()).device
        row = torch.tensor([[*ids, *drawn.tokens]], device=device)
        training = self.model.training
        self.model.eval()
        batch = {"input_ids": row, "attention_mask": torch.ones_like(row), "mm_token_type_ids": torch.zeros_like(row)}
        logits = self.model.head(self.model(batch)[0, len(ids) - 1 : -1])
        logits = (logits.full_tensor() if isinstance(logits, DTensor) else logits).float()
        self.model.train(training)
        logits[:, list(self.banned)] = -torch.inf
        own = logits.log_softmax(dim=-1).gather(-1, row[0, len(ids) :, None])[:, 0].cpu()
        error = float((own - torch.tensor(drawn.logprobs)).abs().mean())
        if not error <= self.max_logprob_gap:
            raise EngineError(
                f"parity gate, version {self.version}: the log-probabilities of engine and trainer differ by "
                f"{error:.3g} nats a token, engine.max_logprob_gap allows {self.max_logprob_gap:g}; the engine has "
                "other weights or another precision"
            )


def served_name(name: str) -> str:
    """The name that vLLM gives a weight of Qwen3-VL, as far as it keeps it whole."""
    if name.startswith("model.language_model."):
        return name.replace("model.language_model.", "language_model.model.", 1)
    return name.removeprefix("model.") if name.startswith("model.") else f"language_model.{name}"


def _images(batch: Any, merge: int) -> Iterator[PromptMedia]:
    """The images in order, as if each were at the beginning."""
    start = 0
    for time, height, width in batch.get("image_grid_thw", torch.zeros(0, 3, dtype=torch.int64)).tolist():
        end = start + time * height * width
        yield PromptMedia(
            0, (end - start) // merge**2, (time, height, width), pixels=batch["pixel_values"][start:end].cpu()
        )
        start = end


def _first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _meet() -> None:
    if dist.is_initialized():
        dist.barrier()
