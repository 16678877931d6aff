"""The verb `drive`: a run's model drives in another's simulator until it is told to end."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from carla_driver_interface.protocol import (
    DriveRequest,
    DriveResponse,
    DriveSessionCloseRequest,
    DriveSessionRequest,
    SessionRequestStatus,
    add_EgodriverServiceServicer_to_server,
    channel_options,
)
from carla_driver_interface.service import EgodriverServicer

from framework.run.logs import set_up_logging
from framework.serving.alpasim import AlpasimDriver
from framework.serving.serve import load
from framework.serving.words import Words

DEFAULTS = {"protocol": "", "host": "127.0.0.1", "port": "50551", "cameras": "", "deadline_ms": "1000",
            "sessions": "8", "max_sessions": "64", "idle_s": "600",
            "cached_frames": "32"}  # fmt: skip
"""The words of `drive` next to `run`, with their values unless given."""
WAKE_S = 1.0
"""How often sessions whose client is gone are looked for."""
DROPPED_S = 10.0
"""How long a client may take to come back whose connection was lost during a call."""
REFUSED = "sessions refused"
"""What the driver's last line calls them."""


@dataclass(frozen=True)
class Driving:
    """What the command line says."""

    run: Path
    """The run's folder, or an exported one."""
    address: str
    """HOST:PORT to listen on."""
    cameras: dict[str, str]
    """The model's name of each camera, by its name in the simulator."""
    deadline_s: float
    """Time for a plan (s)."""
    sessions: int
    """Calls that are served at once, of all sessions."""
    max_sessions: int
    """The most sessions that are open at once."""
    idle_s: float
    """A session whose client has not called for so long (s) is closed."""
    cached_frames: int = 32
    """The most images, and frames of clips, whose features are kept."""


def drive(words: Sequence[str]) -> int:
    """Drive for AlpaSim until SIGTERM or SIGINT. Raises `RecipeError` for words that cannot be used."""
    driving = parse(words)
    set_up_logging("drive")
    name, worker = load(driving.run, driving.sessions, 4 * driving.sessions, driving.cached_frames)
    driver = AlpasimDriver(name, worker, driving.cameras, driving.deadline_s)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        with listening(driver, driving) as port:
            print(f"driving {name} for AlpaSim at port {port} of {driving.address.rpartition(':')[0]}", flush=True)
            ended.wait()
    finally:
        worker.close()
    print(", ".join(f"{count} {what}" for what, count in driver.total.items()) or "no drive", file=sys.stderr)
    return 0


class LimitedServicer(EgodriverServicer):
    """The service, which refuses a session above the most with RESOURCE_EXHAUSTED: each keeps its images and poses.

    Args:
        driver: Plans.
        max_sessions: The most sessions that are open at once.
    """

    def __init__(self, driver: AlpasimDriver, max_sessions: int) -> None:
        super().__init__(driver, mode="alpasim")
        self.driver, self.max_sessions = driver, max_sessions
        self._starting = threading.Lock()

    def start_session(self, request: DriveSessionRequest, context: grpc.ServicerContext) -> SessionRequestStatus:
        """See the protocol."""
        with self._starting:  # two that start at once would both find the last place free
            if len(self.driver.episodes) >= self.max_sessions:
                self.driver.total[REFUSED] += 1
                context.abort(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"{self.max_sessions} sessions are open; close one, or start the driver with a larger max_sessions",
                )
            return super().start_session(request, context)

    def drive(self, request: DriveRequest, context: grpc.ServicerContext) -> DriveResponse:
        """See the protocol. gRPC tells of a lost connection only while a call waits."""
        answered = threading.Event()
        context.add_callback(lambda: None if answered.is_set() else self.driver.on_dropped(request.session_uuid))
        response = super().drive(request, context)
        answered.set()
        return response


@contextmanager
def listening(driver: AlpasimDriver, driving: Driving) -> Iterator[int]:
    """Serve the driver at HOST:PORT, port 0 for any that is free; yields the port. A session whose client went during a
    call is closed after `DROPPED_S`, one whose client has not called after `idle_s`.

    Raises `OSError` where the address cannot be used.
    """
    server = grpc.server(
        ThreadPoolExecutor(max_workers=driving.sessions), options=[*channel_options(), ("grpc.so_reuseport", 0)]
    )
    servicer = LimitedServicer(driver, driving.max_sessions)
    add_EgodriverServiceServicer_to_server(servicer, server)
    try:
        port = server.add_insecure_port(driving.address)
    except RuntimeError as error:
        raise OSError(f"{driving.address}: cannot be listened on; give another host or port") from error
    server.start()
    ended = threading.Event()
    sweeper = threading.Thread(target=_close_idle, args=(servicer, driver, driving.idle_s, ended), daemon=True)
    sweeper.start()
    try:
        yield port
    finally:
        ended.set()
        server.stop(grace=driver.deadline_s).wait()
        sweeper.join()
        for uuid in driver.idle(0.0):  # those that their clients left open count as well
            servicer.close_session(DriveSessionCloseRequest(session_uuid=uuid), None)


def _close_idle(servicer: EgodriverServicer, driver: AlpasimDriver, idle_s: float, ended: threading.Event) -> None:
    while not ended.wait(min(WAKE_S, idle_s)):
        for uuid in driver.idle(idle_s, DROPPED_S):
            print(f"session {uuid}: its client has gone, or not called for {idle_s:g} s; it is closed", file=sys.stderr)
            servicer.close_session(DriveSessionCloseRequest(session_uuid=uuid), None)


def parse(given: Sequence[str]) -> Driving:
    """What the words say, be they key=value or --key VALUE. Raises `RecipeError` with all that cannot be used."""
    words = Words("drive", list(_plain(given)), DEFAULTS)
    if words.values["protocol"] != "alpasim":
        words.fault("protocol", "say for whom to drive: --alpasim")
    numbers = words.numbers("port", "deadline_ms", "sessions", "max_sessions", "idle_s", "cached_frames")
    cameras = dict[str, str]()
    for pair in filter(None, words.values["cameras"].split(",")):
        theirs, colon, ours = pair.partition(":")
        if not (theirs and colon and ours) or ours in cameras.values() or theirs in cameras:
            words.fault("cameras", f"{pair!r}; give ALPASIM_NAME:MODEL_NAME,..., each once")
        cameras[theirs] = ours
    words.filled("host")
    run = words.run()
    words.refuse()
    address = f"{words.values['host']}:{numbers['port']}"
    return Driving(run, address, cameras, numbers["deadline_ms"] / 1000.0, numbers["sessions"], numbers["max_sessions"],
                   numbers["idle_s"], numbers["cached_frames"])  # fmt: skip


def _plain(given: Sequence[str]) -> Iterator[str]:
    """The words as key=value."""
    words = iter(given)
    for word in words:
        if word == "--alpasim":
            yield "protocol=alpasim"
        elif word.startswith("--"):
            yield word[2:] if "=" in word else f"{word[2:]}={next(words, '')}"
        else:
            yield word
