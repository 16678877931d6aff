"""Requests that no client should send: each is refused by the field at fault, and the server goes on."""

from __future__ import annotations

import base64
import io
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from starlette.testclient import TestClient

from framework.scene.types import Scene
from framework.serving.app import Limits
from framework.training.ask import Asker
from tests.serving.conftest import LIMITS, CannedAsker, on_loopback, serving
from tests.serving.test_app import HELLO, asked, changed, fault, picture, slow_asker
from tools.bench.serving import malformed

DRIVE, CHAT = "/v1/drive", "/v1/chat/completions"
CALIBRATED = [[40.0, 0, 48], [0, 40.0, 27], [0, 0, 1]]


def encoded(image: Image.Image, form: str, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, form, **options)
    return base64.b64encode(file.getvalue()).decode()


def shown(scene: Scene) -> Image.Image:
    return Image.open(io.BytesIO(scene.cameras[0].frames[-1]))


def animation() -> str:
    first, second = (Image.new("RGB", (32, 32), (level, 0, 0)) for level in (10, 200))
    return "data:image/gif;base64," + encoded(first, "GIF", save_all=True, append_images=[second])


@pytest.mark.parametrize(
    ("intrinsic", "word"),
    [
        ([[0, 0, 48], [0, 40, 27], [0, 0, 1]], "focal"),
        ([[-40, 0, 48], [0, 40, 27], [0, 0, 1]], "focal"),
        ([[40, 0, 4800], [0, 40, 2700], [0, 0, 1]], "principal point"),
        (np.transpose(CALIBRATED).tolist(), "last row"),
        ([[40, 0, 48, 0], [0, 40, 27, 0], [0, 0, 1, 0]], "shape"),
        ([[40, 0, None], [0, 40, 27], [0, 0, 1]], ""),
        ("eye", "not a list"),
        (None, "null"),
    ],
)
@pytest.mark.fast_cases(2)
def test_a_wrong_intrinsic_is_named(canned: TestClient, scene: Scene, intrinsic: Any, word: str) -> None:
    response = canned.post(DRIVE, json=changed(asked(scene), "cameras.0.intrinsic", intrinsic))
    assert fault(response) == (422, "cameras[0].intrinsic"), response.text
    assert word in response.json()["error"]["message"]


@pytest.mark.parametrize("sensor", ["cameras.0", "lidar", "radar"])
@pytest.mark.parametrize("wrong", ["mirrored", "scaled", "transposed", "millimetres", "nan", "rows"])
def test_a_wrong_extrinsic_is_named(canned: TestClient, scene: Scene, sensor: str, wrong: str) -> None:
    pose = np.eye(4)
    pose[:3, 3] = 1.5, 0.0, 1.6
    made: dict[str, list[Any]] = {
        "mirrored": (pose * [[1], [-1], [1], [1]]).tolist(),
        "scaled": (pose * 1.01).tolist(),
        "transposed": pose.T.tolist(),
        "millimetres": np.block([[pose[:3, :3], 1000 * pose[:3, 3:]], [pose[3:]]]).tolist(),
        "nan": [[None, *row[1:]] for row in pose.tolist()],
        "rows": pose[:3].tolist(),
    }
    field = f"{sensor.replace('.0', '[0]')}.extrinsic"
    response = canned.post(DRIVE, json=changed(asked(scene), f"{sensor}.extrinsic", made[wrong]))
    assert fault(response) == (422, field), response.text


@pytest.mark.parametrize("kind", ["GIF", "animation", "BMP", "cut", "cut text", "float", "text", "empty", "huge"])
def test_images_of_a_wrong_kind_are_refused_by_their_camera(canned: TestClient, scene: Scene, kind: str) -> None:
    image, jpeg = shown(scene), base64.b64encode(scene.cameras[0].frames[-1]).decode()
    made = {
        "GIF": lambda: encoded(image, "GIF"),
        "animation": animation,
        "BMP": lambda: encoded(image, "BMP"),
        "cut": lambda: jpeg[: len(jpeg) // 8 * 4],
        "cut text": lambda: jpeg[:-3],
        "float": lambda: encoded(Image.new("F", image.size, 0.5), "TIFF"),
        "text": lambda: base64.b64encode(b"%!PS-Adobe-3.0").decode(),
        "empty": lambda: "",
        "huge": lambda: encoded(Image.new("L", (9000, 9000)), "PNG"),
    }
    response = canned.post(DRIVE, json=changed(asked(scene), "cameras.0.image", made[kind]()))
    assert fault(response) == (422, "cameras[0].image"), response.text


def test_an_image_of_16_bits_is_seen_and_one_of_another_size_is_not(canned: TestClient, scene: Scene) -> None:
    grey = np.asarray(shown(scene).convert("L"), np.uint16) * 257
    sixteen = changed(asked(scene), "cameras.0.image", encoded(Image.fromarray(grey), "PNG"))
    assert canned.post(DRIVE, json=sixteen).status_code == 200
    small = changed(asked(scene), "cameras.0.image", encoded(shown(scene).resize((8, 8)), "PNG"))
    assert fault(canned.post(DRIVE, json=small)) == (422, "cameras[0].intrinsic"), "it is that of a larger image"


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("history.times", [0.0, -1.0, -0.5], "history.times"),
        ("history.states", "reversed", "history"),
        ("history.states", "shuffled", "history.states"),
        ("history.states", [], "history.states"),
        ("history.rate_hz", -4, "history.rate_hz"),
        ("history.rate_hz", 0, "history.rate_hz"),
        ("route", [[0, 0], [None, 3]], "route"),
        ("route", [[0, 0], [1e7, 3]], "route"),
        ("id", "\u0000", "id"),
        ("perception.scores", [2.0], "perception.scores"),
        ("radar.returns", [[1, 2, 0, 3]], "radar.returns"),
        ("cameras", [{}] * 17, "cameras"),
    ],
)
def test_what_is_amiss_in_a_scene_is_told_in_the_requests_own_names(
    canned: TestClient, scene: Scene, path: str, value: Any, field: str
) -> None:
    request = asked(scene) | {"route": [[0, 0], [9, 0]]}
    if isinstance(value, str) and path == "history.states":
        fast = [[20.0 * (step - 8), 0.0, 0.0, 80.0] for step in range(9)]
        value = fast[::-1] if value == "reversed" else [*fast[4:8], *fast[:4], fast[8]]
    response = canned.post(DRIVE, content=json.dumps(changed(request, path, value)))
    assert fault(response) == (422, field), response.text


@pytest.mark.parametrize(
    ("request_", "status", "field"),
    [
        (HELLO | {"model": "gpt-5"}, 404, "model"),
        (HELLO | {"model": 5}, 422, "model"),
        (HELLO | {"model": "tiny"}, 200, None),
        (HELLO | {"model": "tiny@0"}, 200, None),
        (HELLO | {"n": -1}, 422, "n"),
        (HELLO | {"n": 2}, 422, "n"),
        (HELLO | {"max_tokens": -1}, 422, "max_tokens"),
        (HELLO | {"max_tokens": 10**400}, 422, "max_tokens"),
        (HELLO | {"max_tokens": "9"}, 422, "max_tokens"),
        (HELLO | {"stop": "."}, 422, "stop"),
        (HELLO | {"logprobs": True}, 422, "logprobs"),
        ({"messages": [{"role": "user", "content": "word " * 19_000}] * 6}, 422, "messages"),
        ({"messages": [{"role": "user", "content": "word " * 19_000}]}, 422, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": animation()}}]}]},
         422, "messages[0].content[0].image_url.url"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": picture()[:-9]}}]}]},
         422, "messages[0].content[0].image_url.url"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": picture(3000, 10)}}]}]},
         422, "messages[0].content[0].image_url.url"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "text": ""}]}]},
         422, "messages[0].content[0].type"),
    ],
)  # fmt: skip
def test_a_chat_is_refused_as_openais(canned: TestClient, request_: Any, status: int, field: str | None) -> None:
    response = canned.post(CHAT, content=json.dumps(request_))
    assert response.status_code == status, response.text
    assert status == 200 or fault(response) == (status, field), response.text


@pytest.mark.parametrize(
    ("headers", "status", "field"),
    [
        ({"Content-Type": "text/plain"}, 415, "Content-Type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "Content-Type"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415, "Content-Type"),
        ({"Content-Type": ""}, 415, "Content-Type"),
        ({"Content-Type": "Application/JSON; charset=utf-8"}, 200, None),
        ({"Content-Encoding": "gzip"}, 415, "Content-Encoding"),
    ],
)
def test_a_body_that_is_not_said_to_be_json_is_refused(
    canned: TestClient, headers: dict[str, str], status: int, field: str | None
) -> None:
    """A page of another site can have a browser send the first three, with the password that the browser keeps."""
    response = canned.post(CHAT, content=json.dumps(HELLO), headers=headers)
    assert response.status_code == status
    assert status == 200 or response.json()["error"]["field"] == field


@pytest.fixture(scope="module")
def port(asker: Asker) -> Iterator[int]:
    """Of a server on loopback that answers at once."""
    with on_loopback(serving(CannedAsker(asker.model, asker.data), Limits(timeout_s=2.0, body_bytes=1 << 20))) as port:
        yield port


def told(port: int, *pieces: bytes) -> bytes:
    """The beginning of what is answered to raw bytes; nothing where the connection ends, or after a while."""
    with socket.create_connection(("127.0.0.1", port), timeout=15.0) as connection:
        for piece in pieces:
            connection.sendall(piece)
        try:
            return connection.recv(1000)
        except TimeoutError:
            return b""


def head(*lines: str) -> bytes:
    return "\r\n".join([f"POST {CHAT} HTTP/1.1", "Host: x", "Content-Type: application/json", *lines, "", ""]).encode()


@pytest.mark.slow
@pytest.mark.fault("a request that cannot be used")
def test_whatever_comes_over_the_wire_the_server_goes_on(port: int) -> None:
    body = json.dumps(HELLO).encode()
    chunk = f"{len(body):x}\r\n".encode() + body + b"\r\n"
    chunked = head("Transfer-Encoding: chunked")
    assert told(port, chunked, chunk, b"0\r\n\r\n").startswith(b"HTTP/1.1 200"), "a body without length"
    assert told(port, chunked, b"zz\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert told(port, chunked, chunk).startswith(b"HTTP/1.1 408"), "it never ends"
    assert told(port, head("Content-Length: 999999"), body).startswith(b"HTTP/1.1 408"), "shorter than it says"
    assert told(port, head("Content-Length: -5"), body).startswith(b"HTTP/1.1 400")
    assert told(port, head(f"Content-Length: {8 << 20}"), b"0" * (8 << 20)).startswith(b"HTTP/1.1 413")
    assert told(port, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").startswith(b"HTTP/1.1 400"), "TLS"
    assert told(port, b"GET /" + b"a" * 70_000).startswith(b"HTTP/1.1 4"), "a line without end"
    stream = json.dumps(HELLO | {"stream": True}).encode()
    assert told(port, head(f"Content-Length: {len(stream)}"), stream).startswith(b"HTTP/1.1 422")
    answer = requests.post(f"http://127.0.0.1:{port}{CHAT}", json=HELLO, timeout=10)
    assert answer.status_code == 200
    metrics = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
    assert 'status="500"' not in metrics


def test_who_hangs_up_is_not_answered(asker: Asker) -> None:
    """A prompt that nobody waits for leaves the queue, so that others find room."""
    slow = slow_asker(asker)
    body = json.dumps(HELLO).encode()
    server = serving(slow, LIMITS, max_waiting=4)
    with on_loopback(server) as port, ThreadPoolExecutor(2) as pool:
        url = f"http://127.0.0.1:{port}"
        first = pool.submit(requests.post, f"{url}{CHAT}", json=HELLO, timeout=20)
        while server.worker.waiting or not server.metrics.text().count(b"serving_batch_prompts_count 1.0"):
            time.sleep(0.005)
        for place in range(1, 5):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(head(f"Content-Length: {len(body)}") + body)
                while server.worker.waiting < place:
                    time.sleep(0.005)
        gone = b'serving_requests_total{route="/v1/chat/completions",status="499"} 4.0'
        while gone not in server.metrics.text():
            time.sleep(0.005)
        second = pool.submit(requests.post, f"{url}{CHAT}", json=HELLO, timeout=20)
        while server.worker.waiting != 1:
            time.sleep(0.005)
        slow.may.set()
        assert [first.result().status_code, second.result().status_code] == [200, 200]
        assert "serving_batch_prompts_sum 2.0" in requests.get(f"{url}/metrics", timeout=10).text


def test_what_the_benchmark_of_serving_sends_amiss_is_refused(canned: TestClient, scene: Scene) -> None:
    for route, body in malformed(asked(scene)):
        response = canned.post(f"/v1/{route}", content=body, headers={"Content-Type": "application/json"})
        assert 400 <= response.status_code < 500, (body[:100], response.text)
