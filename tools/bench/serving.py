"""The server under load on loopback: many clients at once, each request until it is answered.

    python -m tools.bench.serving RUN --clients 200 --seconds 120

A client that gets 429 waits as long as it is told and tries again; that is no loss. Lost is a request that ends in any
other way than with 200. Two thirds of the requests drive scenes of the built-in world, the others chat. Further clients
send what cannot be used meanwhile, one request a second each; their answers are counted apart.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from framework.scene.world.generate import generate_scene
from framework.serving.scenes import request_of
from tools.bench.machine import write_result

SCENES = 8
READY_S = 180.0
JSON = {"Content-Type": "application/json"}
CHAT = {"messages": [{"role": "user", "content": "What is ahead?"}], "max_tokens": 16}
MALFORMED_PAUSE_S = 1.0


class Load:
    """What the clients have seen so far.

    Args:
        url: The server's.
        seconds: How long clients send.
        tasks: What a scene is asked.
    """

    def __init__(self, url: str, seconds: float, tasks: list[str]) -> None:
        self.url, self.end = url, time.monotonic() + seconds
        scenes = [generate_scene(seed, "curve") for seed in range(SCENES)]
        self.scenes = [request_of(scene, ["front"]) | {"tasks": tasks} for scene in scenes]
        self.codes: Counter[str] = Counter()
        self.malformed: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.lock = threading.Lock()

    def client(self, number: int) -> None:
        """One client: a request after another until the time is over."""
        session, turn = requests.Session(), number
        while time.monotonic() < self.end:
            turn += 1
            route, body = ("chat/completions", CHAT) if turn % 3 == 0 else ("drive", self.scenes[turn % SCENES])
            started = time.monotonic()
            code = self._until_answered(session, f"{self.url}/v1/{route}", body)
            with self.lock:
                self.codes[code] += 1
                self.latencies.append(time.monotonic() - started)

    def malformed_client(self, number: int) -> None:
        """A client that sends what cannot be used, one kind after another."""
        session, bodies = requests.Session(), malformed(self.scenes[0])
        while time.monotonic() < self.end:
            number += 1
            route, body = bodies[number % len(bodies)]
            try:
                code = str(session.post(f"{self.url}/v1/{route}", data=body, headers=JSON, timeout=300).status_code)
            except requests.RequestException as error:
                code = type(error).__name__
            with self.lock:
                self.malformed[code] += 1
            time.sleep(MALFORMED_PAUSE_S)

    def _until_answered(self, session: requests.Session, url: str, body: dict[str, Any]) -> str:
        while True:
            try:
                response = session.post(url, json=body, timeout=300)
            except requests.RequestException as error:
                return type(error).__name__
            if response.status_code != 429:
                return str(response.status_code)
            with self.lock:
                self.codes["429"] += 1
            time.sleep(float(response.headers["Retry-After"]))


def malformed(scene: dict[str, Any]) -> list[tuple[str, bytes]]:
    """Routes and bodies that no server can use, next to a sound request about a scene."""
    camera = scene["cameras"][0]
    changes: list[dict[str, Any]] = [
        {"history": None}, {"lidar": {"points": [[None, 0, 0, 0]]}}, {"cameras": [camera, camera]},
        {"cameras": [camera | {"name": "periscope"}]}, {"cameras": [camera | {"image": camera["image"][:-5]}]},
        {"cameras": [camera | {"intrinsic": [[1, 0], [0, 1]]}]}, {"tasks": ["dance"]},
    ]  # fmt: skip
    bodies = [("drive", json.dumps(scene | change).encode()) for change in changes]
    bodies += [("chat/completions", json.dumps(CHAT | change).encode()) for change in (
        {"n": -1}, {"stream": True}, {"max_tokens": 10**9}, {"model": "another"}, {"messages": []},
    )]  # fmt: skip
    return [*bodies, ("drive", b"[" * 100_000), ("chat/completions", b"\xff"), ("drive", b"0" * (20 << 20))]


def resident_mib(process: int) -> float:
    """Resident memory of a process."""
    text = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmRSS"))


def measure(
    run: str, clients: int, seconds: float, port: int, tasks: list[str], malformed_clients: int
) -> dict[str, Any]:
    """Start the server, load it, end it with SIGTERM. Returns the figures."""
    busy = os.getloadavg()[0]  # of other work
    words = [sys.executable, "-m", "framework", "serve", f"run={run}", f"port={port}", "timeout_s=300"]
    server = subprocess.Popen(words, env=os.environ)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url)
        load = Load(url, seconds, tasks)
        threads = [threading.Thread(target=load.client, args=(number,)) for number in range(clients)]
        threads += [threading.Thread(target=load.malformed_client, args=(n,)) for n in range(malformed_clients)]
        for thread in threads:
            thread.start()
        started = time.monotonic()
        memory = list(_sampled(server.pid, load.end, threads))
        took = time.monotonic() - started  # requests that began in time are answered after it
        latencies = sorted(load.latencies)
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    finally:
        server.kill()
    answered = load.codes["200"]
    third = max(len(memory) // 3, 1)
    return {
        "clients": clients, "seconds": seconds, "tasks": tasks, "answered": answered,
        "lost": sum(load.codes.values()) - answered - load.codes["429"], "codes": dict(load.codes),
        "malformed": dict(load.malformed), "load_average_before": round(busy, 1),
        "answers_per_s": round(answered / took, 2), "p50_s": round(statistics.median(latencies), 2),
        "p99_s": round(latencies[int(0.99 * (len(latencies) - 1))], 2),
        "memory_mib": {"first third": round(max(memory[:third])), "last third": round(max(memory[-third:]))},
    }  # fmt: skip


def _wait(url: str) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        try:
            if requests.get(f"{url}/health", timeout=5).ok:
                return
        except requests.RequestException:
            time.sleep(0.5)
    raise SystemExit(f"{url}: no answer within {READY_S:g} s")


def _sampled(process: int, end: float, threads: list[threading.Thread]) -> Iterator[float]:
    """Yields the memory every second, until all clients have ended."""
    while time.monotonic() < end or any(thread.is_alive() for thread in threads):
        yield resident_mib(process)
        time.sleep(1.0)


def main() -> None:
    """Measure, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run's folder")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--malformed-clients", type=int, default=5)
    parser.add_argument("--port", type=int, default=8127)
    parser.add_argument("--tasks", nargs="+", default=["drive"])
    parser.add_argument("--out", type=Path, default=Path("tools/bench/results/serving.json"))
    given = parser.parse_args()
    figures = measure(given.run, given.clients, given.seconds, given.port, given.tasks, given.malformed_clients)
    write_result(given.out, "serving", vars(given) | {"run": Path(given.run).name}, figures)


if __name__ == "__main__":
    main()
