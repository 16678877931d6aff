"""The HTTP application: routes, limits, and how a fault of a request is told."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from framework.data.render.tasks import Task
from framework.evaluation.predictions import box_column, plan_columns
from framework.scene.types import Scene, SceneError
from framework.serving.chat import Chat, completion, parse_chat, refuse_other_model
from framework.serving.fields import FieldError, items, text
from framework.serving.metrics import Metrics
from framework.serving.page import world_page
from framework.serving.scenes import field_of, parse_scene
from framework.serving.worker import BusyError, Question, Worker
from framework.training.ask import Reply, plan_and_boxes

log = logging.getLogger(__name__)

DRIVE_TASKS = ("drive", "detect", "reason")
"""Tasks that a request to drive may ask for."""
ASKED = ("drive", "detect")
"""Those of them that a request asks for which names none, where the model knows them."""
JSON_TYPE = "application/json"
CLOSED = 499
"""Counted for a request whose client has gone: nobody reads an answer."""
DROPPED = 16
"""A body is read, and dropped, up to so many times the limit."""
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Limits:
    """What a request may cost."""

    body_bytes: int = 16 << 20
    """The largest body."""
    timeout_s: float = 60.0
    """Longest time from a request to its answer."""
    task_tokens: int = 8192
    """Token limit of an answer with a grammar; shorter ones end by themselves."""
    chat_tokens: int = 256
    """Token limit of an answer in a chat."""


class Server:
    """The routes over one model.

    Args:
        worker: Answers prompts.
        model: The model's name, as `/v1/models` tells it.
        limits: What a request may cost.
        key: The API key that requests must bear; None lets everybody in.
    """

    def __init__(self, worker: Worker, model: str, limits: Limits, key: str | None) -> None:
        self.worker, self.model, self.limits, self.key = worker, model, limits, key
        self.data = worker.asker.data
        self.metrics = Metrics(lambda: float(worker.waiting))
        worker.batched = self.metrics.batch.observe
        routes = {
            "/health": ("GET", self._health), "/metrics": ("GET", self._metrics), "/": ("GET", self._page),
            "/v1/models": ("GET", self._models), "/v1/chat/completions": ("POST", self._chat),
            "/v1/drive": ("POST", self._drive),
        }  # fmt: skip
        self.app = Starlette(
            routes=[Route(path, self._measured(path, each), methods=[verb]) for path, (verb, each) in routes.items()],
            exception_handlers={HTTPException: _refused},
        )

    def _measured(self, route: str, handler: Handler) -> Handler:
        """`handler` behind the key, with its faults told and its requests counted."""

        async def measured(request: Request) -> Response:
            started = time.perf_counter()
            try:
                if route != "/health" and not self._may_enter(request):
                    raise FieldError("Authorization", "is missing or wrong; give Bearer and the server's key", 401)
                response = await handler(request)
            except FieldError as error:
                response = _fault(error.status, error.field, error.message)
            except BusyError as error:
                response = _fault(429, "", f"{error}; try again", {"Retry-After": "1"})
            except RecursionError:
                response = _fault(400, "", "the body is nested too deeply; send it flatter")
            except ClientDisconnect:
                response = _fault(CLOSED, "", "the client has gone")
            except TimeoutError:
                response = _fault(504, "", f"no answer within {self.limits.timeout_s:g} s; ask for less, or raise it")
            except Exception:
                log.exception("%s failed", route)
                response = _fault(500, "", "the server failed; its log tells why")
            self.metrics.requests.labels(route, str(response.status_code)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - started)
            return response

        return measured

    def _may_enter(self, request: Request) -> bool:
        """Whether a request bears the key: as a bearer, or as the password that a browser asks for."""
        if self.key is None:
            return True
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            try:
                value = base64.b64decode(value, validate=True).decode("utf-8", "replace").partition(":")[2]
            except (binascii.Error, ValueError):
                return False
        return hmac.compare_digest(value.encode("utf-8", "replace"), self.key.encode())

    async def _json(self, request: Request) -> Any:
        """The body as JSON. Raises `FieldError` for one that is too large or too slow, and for what is no JSON, or is
        not said to be: a page of another site can have a browser send any other type.
        """
        declared = request.headers.get("content-type", JSON_TYPE).partition(";")[0].strip().lower()
        if declared != JSON_TYPE:
            raise FieldError("Content-Type", f"is {declared[:100]!r}; send {JSON_TYPE}", 415)
        if (coding := request.headers.get("content-encoding", "identity").strip().lower()) != "identity":
            raise FieldError("Content-Encoding", f"is {coding[:100]!r}; send the body as it is", 415)
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                body = await self._body(request)
        except TimeoutError as error:
            message = f"the body did not come within {self.limits.timeout_s:g} s; send it faster, or less"
            raise FieldError("", message, 408) from error
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise FieldError("", f"the body is no JSON: {str(error)[:200]}", 400) from error

    async def _body(self, request: Request) -> bytes:
        """The body. One that is too large is read on, and dropped, to a point: a client that still sends would not see
        the answer.
        """
        pieces, size, most = list[bytes](), 0, self.limits.body_bytes
        async for piece in request.stream():
            size += len(piece)
            if size <= most:
                pieces.append(piece)
            else:
                pieces.clear()
            if size > DROPPED * most:
                break
        if size > most:
            raise FieldError("", f"the body has more than {most} bytes; send less", 413)
        return b"".join(pieces)

    async def _answers(self, request: Request, asked: Mapping[str, tuple[Task, int]], scene: Scene) -> dict[str, Reply]:
        """The answers to the tasks about a scene, while the client waits for them. Raises `FieldError`, `BusyError`,
        `TimeoutError` and `ClientDisconnect`.
        """
        deadline = time.monotonic() + self.limits.timeout_s
        questions = [Question(name, task, scene, limit, deadline) for name, (task, limit) in asked.items()]
        self.worker.ask(questions)
        waits = asyncio.gather(*(asyncio.wrap_future(each.reply) for each in questions))
        gone = asyncio.ensure_future(_gone(request))
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                await asyncio.wait((waits, gone), return_when=asyncio.FIRST_COMPLETED)
                if not waits.done():
                    raise ClientDisconnect
                replies = await waits
        except asyncio.CancelledError as error:  # the worker found it too late
            raise TimeoutError from error
        except SceneError as error:
            raise field_of(error, scene) from error
        except (ValueError, RuntimeError) as error:  # of the very type: want of memory has one of its own
            of_grammar = type(error) in (ValueError, RuntimeError)
            if of_grammar and any(isinstance(task, Chat) and task.grammar for task, _ in asked.values()):
                raise FieldError("response_format", f"cannot be followed: {str(error)[:300]}") from error
            raise
        finally:
            waits.cancel()  # what nobody waits for leaves the queue
            gone.cancel()
        self.metrics.tokens.inc(sum(len(reply.tokens) for reply in replies))
        return dict(zip(asked, replies, strict=True))

    async def _drive(self, request: Request) -> Response:
        """`POST /v1/drive`."""
        body = await self._json(request)
        scene = await asyncio.to_thread(parse_scene, body, self.data)
        known = [name for name in DRIVE_TASKS if name in self.data.tasks]
        given = body["tasks"] if body.get("tasks") is not None else [name for name in ASKED if name in known]
        names = [text(each, "tasks") for each in items(given, "tasks", len(DRIVE_TASKS))]
        if wrong := next((repr(name) for name in names if name not in known), None if names else "an empty list"):
            raise FieldError("tasks", f"{wrong} is no task of this model; there are {', '.join(known)}")
        started = time.perf_counter()
        asked = {name: (self.data.tasks[name], self.limits.task_tokens) for name in names}
        replies = await self._answers(request, asked, scene)
        return JSONResponse(self._driven(scene, replies) | {"seconds": time.perf_counter() - started})

    def _driven(self, scene: Scene, replies: Mapping[str, Reply]) -> dict[str, Any]:
        """What was answered about a scene, as JSON."""
        plan, boxes = plan_and_boxes(replies.values())
        reason = replies.get("reason")
        return {
            "id": scene.id, "model": self.model, "command": scene.command, **plan_columns(scene, plan),
            "boxes": _known(box_column(boxes)), "reasons": reason.text.rpartition("\n")[0] if reason else None,
            "answers": {
                name: {"text": each.text, "logprob": each.logprob, "tokens": len(each.tokens),
                       "complete": each.complete, "parsed": each.decoded is not None}
                for name, each in replies.items()
            },
        }  # fmt: skip

    async def _chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        body = await self._json(request)
        refuse_other_model(body, self.model)
        scene, task, limit = await asyncio.to_thread(parse_chat, body, self.limits.chat_tokens)
        reply = (await self._answers(request, {"chat": (task, limit)}, scene))["chat"]
        words = reply.text
        if len(reply.tokens) > limit:
            words = self.worker.asker.model.processor.tokenizer.decode(reply.tokens[:limit], skip_special_tokens=False)
        return JSONResponse(completion(reply, words, limit, self.model))

    async def _page(self, request: Request) -> Response:
        """`GET /`: a scene of the built-in world, picked by kind and seed, with plan, boxes and answers."""

        async def answers(scene: Scene, names: Sequence[str]) -> dict[str, Reply]:
            tasks = self.data.tasks
            return await self._answers(request, {name: (tasks[name], self.limits.task_tokens) for name in names}, scene)

        query = dict(request.query_params)
        return HTMLResponse(await world_page(query, self.model, self.worker.asker, answers))

    async def _models(self, request: Request) -> Response:
        return JSONResponse(
            {"object": "list", "data": [{"id": self.model, "object": "model", "owned_by": "framework"}]}
        )

    async def _health(self, request: Request) -> Response:
        """Whether questions are answered: 200, or 503 once the server is about to end."""
        alive = self.worker.alive
        state = {"status": "ok" if alive else "ending", "waiting": self.worker.waiting}
        return JSONResponse(state, 200 if alive else 503)

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type=self.metrics.content_type)


async def _gone(request: Request) -> None:
    """Waits until the client has gone; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _known(boxes: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Boxes whose unknown velocities are null: JSON has no NaN."""
    if boxes is None:
        return None
    return [{name: None if value != value else value for name, value in box.items()} for box in boxes]


def _fault(status: int, field: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error in OpenAI's form, with the field that is at fault."""
    error = {"message": f"{field}: {message}" if field else message, "type": "invalid_request_error" if status < 500
             else "server_error", "param": field or None, "field": field or None, "code": status}  # fmt: skip
    given = dict(headers or {}) | ({"WWW-Authenticate": 'Basic realm="model"'} if status == 401 else {})
    return JSONResponse({"error": error}, status, given)


async def _refused(request: Request, error: Exception) -> Response:
    """What no route takes: 404, 405."""
    assert isinstance(error, HTTPException)
    return _fault(error.status_code, "", str(error.detail), error.headers)
