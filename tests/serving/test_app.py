"""The server answers as the model does, and what it cannot use it refuses by the field."""

from __future__ import annotations

import base64
import copy
import io
import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from framework.data.render.sample import Sample
from framework.data.render.tasks import Task
from framework.model.generate import Completion
from framework.scene.types import Scene
from framework.serving.app import Limits
from framework.serving.scenes import request_of
from framework.training.ask import Asker, Reply
from tests.serving.conftest import LIMITS, CannedAsker, serving

HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
REMOVED = object()


def asked(scene: Scene) -> dict[str, Any]:
    return request_of(scene, ["front"])


def picture(width: int = 32, height: int = 32) -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (9, 90, 200)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def fault(response: Any) -> tuple[int, str | None]:
    return response.status_code, response.json()["error"]["field"]


def changed(request: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of the request with another value at `path`, or without it."""
    request = copy.deepcopy(request)
    *parents, last = [int(word) if word.isdigit() else word for word in path.split(".")]
    place: Any = request
    for parent in parents:
        place = place[parent]
    if value is REMOVED:
        del place[last]
    else:
        place[last] = value
    return request


def test_a_scene_over_http_is_answered_as_in_this_process(client: TestClient, asker: Asker, scene: Scene) -> None:
    ours = asker.answer([asker.prompt(name, scene) for name in ("drive", "detect")], LIMITS.task_tokens)
    response = client.post("/v1/drive", json=asked(scene))
    assert response.status_code == 200, response.text
    answer = response.json()
    assert [answer["answers"][name]["text"] for name in ("drive", "detect")] == [reply.text for reply in ours]
    states = np.array([[state[key] for key in ("x", "y", "heading", "speed")] for state in answer["plan"]])
    np.testing.assert_allclose(states, ours[0].decoded.states, atol=1e-9)  # type: ignore[union-attr]
    assert [state["t"] for state in answer["plan"]] == [0.25 * step for step in range(1, 21)]
    assert len(answer["controls"]) == 20


def test_a_chat_with_an_image_answers_in_openais_form(client: TestClient) -> None:
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": picture()}}]
    request = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]}
    response = client.post("/v1/chat/completions", json=request | {"max_tokens": 5})
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in ("length", "stop")
    usage = response.json()["usage"]
    assert usage["completion_tokens"] <= 5 < usage["prompt_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_schema_constrains_the_answer(client: TestClient) -> None:
    schema = {
        "type": "object",
        "properties": {"go": {"enum": [1, 2]}},
        "required": ["go"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "go", "schema": schema}}
    response = client.post("/v1/chat/completions", json=HELLO | {"response_format": form})
    assert json.loads(response.json()["choices"][0]["message"]["content"])["go"] in (1, 2)
    form["json_schema"]["schema"] = {"type": "nothing"}  # type: ignore[index]
    assert fault(client.post("/v1/chat/completions", json=HELLO | {"response_format": form})) == (
        422,
        "response_format",
    )


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("history", REMOVED, "history"),
        ("lidar", REMOVED, "lidar"),
        ("cameras", [], "cameras"),
        ("perception", REMOVED, "perception"),
        ("history.states.1.0", float("nan"), "history.states"),
        ("history.states.1.3", 1e6, "history.states"),
        ("history.states.1", [1.0], "history.states"),
        ("history.rate_hz", "fast", "history.rate_hz"),
        ("cameras.0.name", "periscope", "cameras[0].name"),
        ("cameras.0.intrinsic", [[1, 0], [0, 1]], "cameras[0].intrinsic"),
        ("cameras.0.extrinsic", (2 * np.eye(4)).tolist(), "cameras[0].extrinsic"),
        ("cameras.0.image", "not an image", "cameras[0].image"),
        ("cameras.0.image", base64.b64encode(b"not an image").decode(), "cameras[0].image"),
        ("cameras.0.image", REMOVED, "cameras[0].image"),
        ("lidar.points", base64.b64encode(np.full(4, np.nan, "<f4").tobytes()).decode(), "lidar.points"),
        ("lidar.points", "AAAA", "lidar.points"),
        ("lidar.points", [[10**400, 0, 0, 0]], "lidar.points"),
        ("lidar.points", [["1", "2", "3", "4"]], "lidar.points"),
        ("lidar.points", [[True, None, 3, 4]], "lidar.points"),
        ("lidar.points", [[None, 2, 3, 4]], "lidar.points"),
        ("perception.labels", ["dragon"], "perception.labels"),
        ("perception.values", [[0.0] * 9] * 999, "perception.values"),
        ("command", "fly", "command"),
        ("route", [[0, 0]], "route"),
        ("tasks", ["dance"], "tasks"),
        ("tasks", [], "tasks"),
        ("absent", ["sonar"], "absent"),
        ("sonar", {}, "sonar"),
        ("\ud800", {}, "\\ud800"),
    ],
)
@pytest.mark.fault("a request that cannot be used")
def test_what_a_scene_lacks_or_holds_amiss_is_told_by_its_field(
    canned: TestClient, scene: Scene, path: str, value: Any, field: str
) -> None:
    body = json.dumps(changed(asked(scene) | {"route": [[0, 0], [9, 0]]}, path, value))
    response = canned.post("/v1/drive", content=body)
    assert fault(response) == (422, field), response.text
    assert canned.get("/health").json()["status"] == "ok"


def test_each_camera_is_given_once(canned: TestClient, scene: Scene) -> None:
    twice = asked(scene)["cameras"] * 2
    assert fault(canned.post("/v1/drive", json=asked(scene) | {"cameras": twice})) == (422, "cameras[1].name")


def test_a_model_is_asked_for_the_tasks_that_it_knows(asker: Asker, scene: Scene) -> None:
    server = serving(CannedAsker(asker.model, replace(asker.data, tasks={"drive": asker.data.tasks["drive"]})))
    with TestClient(server.app) as client:
        assert list(client.post("/v1/drive", json=asked(scene)).json()["answers"]) == ["drive"]
    server.worker.close()


def test_answers_of_a_model_whose_scores_are_nan_are_none(
    asker: Asker, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Completion((1, 2), (-0.1, float("nan")), "", True)
    monkeypatch.setattr("framework.training.ask.sample", lambda *arguments: [answer] * 2)
    monkeypatch.setattr("framework.training.ask.speculate", lambda *arguments: [answer] * 2)
    prompt = asker.prompt("drive", scene)
    for prompts in ([prompt], [prompt, prompt]):
        with pytest.raises(FloatingPointError, match="not finite"):
            asker.answer(prompts, 2)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "<|im_end|>"}]}, "messages"),
        (HELLO | {"stream": True}, "stream"),
        (HELLO | {"temperature": 0.7}, "temperature"),
        (HELLO | {"max_tokens": 10**9}, "max_tokens"),
        (HELLO | {"response_format": {"type": "xml"}}, "response_format.type"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]},
         "messages[0].content[0].image_url.url"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
    ],
)  # fmt: skip
def test_what_a_chat_holds_amiss_is_told_by_its_field(canned: TestClient, request_: Any, field: str) -> None:
    assert fault(canned.post("/v1/chat/completions", content=json.dumps(request_))) == (422, field)


def test_a_body_that_is_too_large_or_no_json_is_refused_and_the_server_goes_on(canned: TestClient) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b"0" * (1 << 20)

    assert canned.post("/v1/drive", content=endless()).status_code == 413
    for body in (b"", b"\xff", b"[" * 100_000, b"{"):
        assert canned.post("/v1/drive", content=body).status_code == 400
    assert canned.post("/v1/drive", content=b"[]").status_code == 422
    assert canned.get("/nowhere").status_code == 404
    assert canned.get("/v1/drive").status_code == 405
    assert canned.post("/v1/chat/completions", json=HELLO).status_code == 200


def test_a_schema_that_is_nested_without_end_is_refused(canned: TestClient) -> None:
    for depth, status in ((20, 200), (60, 422), (900, 422)):
        nested = '{"not":' * depth + '{"type":"string"}' + "}" * depth
        form = f'{{"type":"json_schema","json_schema":{{"schema":{nested}}}}}'
        body = f'{{"messages":[{{"role":"user","content":"Hello"}}],"response_format":{form}}}'
        assert canned.post("/v1/chat/completions", content=body).status_code == status
    deep = "[" * 900 + "]" * 900
    assert canned.post("/v1/chat/completions", content=f'{{"messages":{deep}}}').status_code == 422
    assert canned.post("/v1/drive", content=f'{{"history":{{"states":{deep}}}}}').status_code == 422


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PATHS = ("history", "history.states", "history.states.0.1", "history.rate_hz", "cameras", "cameras.0", "cameras.0.name",
         "cameras.0.image", "cameras.0.intrinsic", "cameras.0.intrinsic.0.0", "cameras.0.extrinsic.3", "lidar",
         "lidar.points", "lidar.extrinsic", "radar.returns", "perception", "perception.values", "perception.labels.0",
         "perception.scores", "command", "id", "tasks", "absent", "route")  # fmt: skip


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(path=st.sampled_from(PATHS), value=VALUES | st.just(REMOVED))
@pytest.mark.fault("a request that cannot be used")
def test_no_scene_whatever_its_fields_hold_makes_the_server_fail(
    canned: TestClient, scene: Scene, path: str, value: Any
) -> None:
    request = asked(scene) | {"tasks": ["drive"], "absent": [], "route": [[0, 0], [9, 1]]}
    response = canned.post("/v1/drive", content=json.dumps(changed(request, path, value)))
    assert response.status_code in (200, 422), response.text


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(request=VALUES | st.fixed_dictionaries({"messages": VALUES}) | st.fixed_dictionaries(
    {"messages": st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "system", 1]), "content": VALUES}))},
    optional={"max_tokens": VALUES, "response_format": VALUES, "temperature": VALUES},
))  # fmt: skip
def test_no_chat_whatever_it_holds_makes_the_server_fail(canned: TestClient, request: Any) -> None:
    response = canned.post("/v1/chat/completions", content=json.dumps(request))
    assert response.status_code in (200, 422), response.text


class SlowAsker(CannedAsker):
    """Answers once it may."""

    may: threading.Event

    def answer(
        self, prompts: Sequence[Sample], max_new_tokens: int, tasks: Sequence[Task] | None = None
    ) -> list[Reply]:
        self.may.wait(20)
        return super().answer(prompts, max_new_tokens, tasks)


def slow_asker(asker: Asker) -> SlowAsker:
    slow = SlowAsker(asker.model, asker.data)
    object.__setattr__(slow, "may", threading.Event())
    return slow


def test_more_than_may_wait_get_429_and_none_of_the_others_is_lost(asker: Asker) -> None:
    slow = slow_asker(asker)
    server = serving(slow, max_waiting=4)
    with TestClient(server.app) as client, ThreadPoolExecutor(32) as pool:
        sent = [pool.submit(client.post, "/v1/chat/completions", json=HELLO) for _ in range(32)]
        while sum(each.done() for each in sent) < 32 - 8 - 4:  # a batch of eight, and four that wait
            time.sleep(0.005)
        slow.may.set()
        responses = [each.result() for each in sent]
        metrics = client.get("/metrics").text
    server.worker.close()
    codes = [response.status_code for response in responses]
    assert set(codes) == {200, 429}
    assert 5 <= codes.count(200) <= 12
    assert all(response.headers["retry-after"] == "1" for response in responses if response.status_code == 429)
    refused = f'serving_requests_total{{route="/v1/chat/completions",status="429"}} {codes.count(429)}.0'
    assert refused in metrics


def test_an_answer_that_takes_too_long_is_given_up(asker: Asker) -> None:
    slow = slow_asker(asker)
    server = serving(slow, Limits(timeout_s=0.2))
    with TestClient(server.app) as client:
        response = client.post("/v1/chat/completions", json=HELLO)
        assert fault(response) == (504, None)
        slow.may.set()
        assert client.post("/v1/chat/completions", json=HELLO).status_code == 200
    server.worker.close()


class FailingAsker(CannedAsker):
    """Fails on a batch with a command that it does not like."""

    def answer(
        self, prompts: Sequence[Sample], max_new_tokens: int, tasks: Sequence[Task] | None = None
    ) -> list[Reply]:
        if any(prompt.scene.command == "left" for prompt in prompts):
            raise MemoryError("no room")
        return super().answer(prompts, max_new_tokens, tasks)


def test_a_prompt_that_fails_fails_alone(asker: Asker, scene: Scene) -> None:
    server = serving(FailingAsker(asker.model, asker.data))
    with TestClient(server.app, raise_server_exceptions=False) as client, ThreadPoolExecutor(4) as pool:
        bodies = [asked(scene) | {"command": command} for command in ("left", "right", "left", "follow")]
        codes = [each.status_code for each in pool.map(lambda body: client.post("/v1/drive", json=body), bodies)]
        assert codes == [500, 200, 500, 200]
        assert client.get("/health").status_code == 200
    server.worker.close()


class ToldAsker(CannedAsker):
    """Keeps the token limits that it is called with."""

    limits: list[int]

    def answer(
        self, prompts: Sequence[Sample], max_new_tokens: int, tasks: Sequence[Task] | None = None
    ) -> list[Reply]:
        self.limits.append(max_new_tokens)
        return super().answer(prompts, max_new_tokens, tasks)


def test_a_chat_is_not_generated_to_the_limit_of_a_detection(asker: Asker, scene: Scene) -> None:
    told = ToldAsker(asker.model, asker.data)
    object.__setattr__(told, "limits", [])
    server = serving(told, Limits(task_tokens=8192))
    with TestClient(server.app) as client, ThreadPoolExecutor(8) as pool:
        sent = [pool.submit(client.post, "/v1/drive", json=asked(scene)) for _ in range(4)]
        sent += [pool.submit(client.post, "/v1/chat/completions", json=HELLO | {"max_tokens": 5}) for _ in range(4)]
        assert {each.result().status_code for each in sent} == {200}
    server.worker.close()
    assert set(told.limits) == {5, 8192}


def test_what_waits_at_the_end_is_answered_and_nothing_more_is_taken(asker: Asker) -> None:
    slow = slow_asker(asker)
    server = serving(slow)
    with TestClient(server.app) as client, ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(client.post, "/v1/chat/completions", json=HELLO) for _ in range(3)]
        time.sleep(0.1)
        ending = threading.Thread(target=server.worker.close)
        ending.start()
        while server.worker.alive:
            time.sleep(0.005)
        assert client.get("/health").status_code == 503
        assert client.post("/v1/chat/completions", json=HELLO).status_code == 429
        slow.may.set()
        assert [each.result().status_code for each in sent] == [200, 200, 200]
        ending.join()


def test_without_the_key_nothing_but_health_is_told(asker: Asker) -> None:
    server = serving(CannedAsker(asker.model, asker.data), key="open sesame")
    with TestClient(server.app) as client:
        assert client.get("/health").status_code == 200
        for route in ("/", "/metrics", "/v1/models"):
            assert fault(client.get(route)) == (401, "Authorization")
        assert client.get("/v1/models", headers={"Authorization": "Bearer open sesame"}).status_code == 200
        assert client.get("/v1/models", headers={"Authorization": b"Bearer \xf6pen"}).status_code == 401
        assert client.get("/v1/models", auth=("anybody", "open sesame")).status_code == 200
        assert client.get("/v1/models", headers={"Authorization": "Basic %%%"}).status_code == 401
    server.worker.close()


def test_the_page_shows_a_scene_of_the_world_with_its_plan(client: TestClient) -> None:
    assert "<form" in client.get("/").text
    page = client.get("/", params={"kind": "curve", "seed": "3"}).text
    assert "world-curve-3" in page
    assert "<svg" in page
    assert "predicted" in page
    odd = client.get("/", params={"kind": "<script>", "seed": "3"})
    assert odd.status_code == 200
    assert "<script>" not in odd.text
    for seed in ("-1", "x", "9" * 5000, "0" * 12 + "9" * 5000, "٣"):
        assert "give a whole number" in client.get("/", params={"kind": "curve", "seed": seed}).text
