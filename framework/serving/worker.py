"""One thread that owns the model: prompts of concurrent requests wait in a bounded queue and are answered in batches.

Rendering is the thread's too, since tokenizers may not be used by two threads at a time.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from framework.data.render.sample import Sample
from framework.data.render.tasks import Task
from framework.scene.types import Scene, SceneError
from framework.training.ask import Asker, Reply

log = logging.getLogger(__name__)

POLL_S = 0.2
"""How often the idle thread looks whether it should end."""


class BusyError(RuntimeError):
    """The queue is full, or the server is about to end."""


@dataclass
class Question:
    """A prompt that waits for its answer."""

    name: str
    """The task's name."""
    task: Task
    """The task, whose grammar constrains the answer."""
    scene: Scene
    """The scene, or a dialogue's."""
    limit: int
    """Token limit of the answer."""
    deadline: float
    """When nobody waits any more, by `time.monotonic`."""
    reply: Future[Reply] = field(default_factory=Future)
    """The answer; `SceneError` where the scene cannot be rendered."""


class Worker:
    """Answers questions in the order in which they come.

    Args:
        asker: Renders and answers.
        batch_size: The most prompts of a batch.
        max_waiting: The most prompts that wait; one more is refused.
        context: What to compute in, as autocast.
        batched: Told the size of each batch.
    """

    def __init__(
        self,
        asker: Asker,
        batch_size: int,
        max_waiting: int,
        context: Callable[[], AbstractContextManager[None]],
        batched: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.asker, self.batch_size, self.max_waiting, self.batched = asker, batch_size, max_waiting, batched
        self._context = context
        self._waiting: queue.SimpleQueue[Question] = queue.SimpleQueue()
        self._admission = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Prompts that wait."""
        return self._waiting.qsize()

    @property
    def alive(self) -> bool:
        """Whether questions are answered."""
        return self._thread.is_alive() and not self._ending.is_set()

    def ask(self, questions: Sequence[Question]) -> None:
        """Queue the questions of a request, all or none. Raises `BusyError` where there is no room for them."""
        with self._admission:
            if self.waiting + len(questions) > self.max_waiting:
                self._drop_abandoned()
            if not self.alive or self.waiting + len(questions) > self.max_waiting:
                raise BusyError(f"{self.waiting} prompts wait, of {self.max_waiting} at most")
            for question in questions:
                self._waiting.put(question)

    def _drop_abandoned(self) -> None:
        """Free the places of questions that nobody waits for any more."""
        kept = list[Question]()
        try:
            while True:
                kept.append(self._waiting.get_nowait())
        except queue.Empty:
            pass
        for question in kept:
            if not question.reply.cancelled():
                self._waiting.put(question)

    def close(self) -> None:
        """Answer what waits, then end the thread."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            batch = self._next()
            if batch:
                self._answer(batch)
            elif self._ending.is_set():
                return

    def _next(self) -> list[Question]:
        """The next batch: what waits now and is still waited for."""
        batch = list[Question]()
        try:
            batch.append(self._waiting.get(timeout=POLL_S))
            while len(batch) < self.batch_size:
                batch.append(self._waiting.get_nowait())
        except queue.Empty:
            pass
        return [each for each in batch if self._is_awaited(each)]

    def _is_awaited(self, question: Question) -> bool:
        if question.deadline < time.monotonic():
            question.reply.cancel()
        return question.reply.set_running_or_notify_cancel() if not question.reply.cancelled() else False

    def _answer(self, batch: Sequence[Question]) -> None:
        """Answer a batch; where it fails as a whole, one by one, so that a request fails for no other's sake."""
        rendered = list[tuple[Question, Sample]]()
        for each in batch:
            try:
                rendered.append((each, self.asker.prompt(each.name, each.scene, each.task)))
            except Exception as error:
                each.reply.set_exception(error)
                if not isinstance(error, SceneError):
                    log.exception("a prompt of task %s could not be rendered", each.name)
        for together in _of_like_length(rendered):
            self._answer_together(together)

    def _answer_together(self, rendered: Sequence[tuple[Question, Sample]]) -> None:
        self.batched(len(rendered))
        try:
            self._generate(rendered)
        except Exception as error:
            if len(rendered) == 1:
                log.exception("a prompt of task %s could not be answered", rendered[0][0].name)
                rendered[0][0].reply.set_exception(error)
                return
            for one in rendered:
                self._answer_alone(one)

    def _answer_alone(self, one: tuple[Question, Sample]) -> None:
        try:
            self._generate([one])
        except Exception as error:
            log.exception("a prompt of task %s could not be answered", one[0].name)
            one[0].reply.set_exception(error)

    def _generate(self, rendered: Sequence[tuple[Question, Sample]]) -> None:
        with self._context():
            replies = self.asker.answer(
                [sample for _, sample in rendered],
                max(question.limit for question, _ in rendered),
                [question.task for question, _ in rendered],
            )
        for (question, _), reply in zip(rendered, replies, strict=True):
            question.reply.set_result(reply)


def _of_like_length(rendered: Sequence[tuple[Question, Sample]]) -> list[list[tuple[Question, Sample]]]:
    """The prompts by their token limits, which differ by less than twice: a batch lasts as long as its longest answer,
    and a free text may go on to its limit.
    """
    groups: dict[int, list[tuple[Question, Sample]]] = {}
    for one in rendered:
        groups.setdefault(one[0].limit.bit_length(), []).append(one)
    return list(groups.values())
