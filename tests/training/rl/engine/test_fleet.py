"""Two servers behind a router, against stand-ins: weights, answers, and one that is lost in a call."""

from __future__ import annotations

import copy
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from framework.generation.engine import EngineError
from framework.generation.vllm_client import GenerateReply, GenerateRequest
from framework.generation.vllm_media import Layout, PromptMedia
from framework.training.rl.engine.fleet import EngineFleet
from framework.training.rl.engine.vllm import VLLMEngine
from framework.training.rl.engine.vllm_process import VLLMProcess
from framework.training.rl.engine.weight_transfer import Disk
from tests.training.rl.engine import test_vllm
from tests.training.rl.engine.test_vllm import Setting
from tests.training.rl.engine.vllm_stand_in import StandIn, weights_of

served = test_vllm.setting
"""The fixture."""


@pytest.fixture
def second(served: Setting) -> Iterator[StandIn]:
    served.server.forget()
    server = StandIn(copy.deepcopy(served.server.model))  # one that starts must not change the other's weights
    yield server
    server.close()
    served.server.fault, served.server.lives = "", 10**9


@pytest.fixture
def fleet(served: Setting, second: StandIn, tmp_path: Path) -> EngineFleet:
    def partial(server: StandIn, name: str) -> functools.partial[VLLMEngine]:
        folder = str(tmp_path / name)
        waits = {"timeout_s": 20, "patience_s": 3, "revivals": 0, "max_logprob_gap": 1e-3}
        return functools.partial(
            VLLMEngine, url=server.url, folder=folder, dtype="float32", transfer=Disk(), **waits  # type: ignore[arg-type]
        )  # fmt: skip

    return EngineFleet(served.model, {"first": partial(served.server, "a"), "second": partial(second, "b")})


@pytest.mark.slow
@pytest.mark.guarantee(
    "Of several vLLM servers one may be lost in a step: the others answer, and it gets the next weights"
)
def test_a_server_that_is_lost_in_a_call_is_replaced_by_the_other(
    served: Setting,
    second: StandIn,
    fleet: EngineFleet,
) -> None:
    """Answers do not tell which server gave them."""
    weights = weights_of(served.model)
    fleet.sync(weights, 4)
    assert (served.server.version, second.version) == ("4", "4")
    before = [server.answers for server in (served.server, second)]
    expected = fleet.generate(served.requests)
    given = [server.answers - old for server, old in zip((served.server, second), before, strict=True)]
    assert given == [2, 2], "two prompts of two answers each"
    second.lives = 1
    second.fault = "dead"
    assert [[one.tokens for one in group] for group in fleet.generate(served.requests)] == [
        [one.tokens for one in group] for group in expected
    ]
    assert fleet.lost == {"second"}
    count = second.answers
    fleet.generate(served.requests)
    assert second.answers == count, "it is not asked while it is lost"
    second.fault = ""
    fleet.sync(weights, 5)
    assert fleet.lost == set()
    assert (served.server.version, second.version) == ("5", "5")
    fleet.generate(served.requests)
    assert second.answers > count


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["dead", "late"])
def test_a_server_that_is_late_with_its_weights_is_left_out_and_replaced(
    served: Setting, second: StandIn, fleet: EngineFleet, fault: str
) -> None:
    """It does not answer any more, or it answers but does not load its weights."""
    weights = weights_of(served.model)
    fleet.sync(weights, 4)
    expected = fleet.generate(served.requests)
    process = Replacing(second)
    fleet.engines["second"].server.process, fleet.engines["second"].server.patience_s = process, 600.0
    second.model_name = str(fleet.engines["second"].folder)
    second.fault, second.lives = fault, 0 if fault == "dead" else second.lives
    fleet.sync(weights, 5)
    assert fleet.lost == {"second"}
    assert (served.server.version, process.starts) == ("5", 1)
    fleet.health()
    assert [[one.tokens for one in group] for group in fleet.generate(served.requests)] == [
        [one.tokens for one in group] for group in expected
    ]
    fleet.sync(weights, 6)
    assert fleet.lost == {"second"}, "it is starting, and not waited for"
    assert process.starts == 1, "it has time to start"
    process.be_ready()
    fleet.sync(weights, 7)
    assert fleet.lost == set()
    assert (served.server.version, second.version) == ("7", "7")


@pytest.mark.slow
def test_the_last_server_is_waited_for(served: Setting, second: StandIn, fleet: EngineFleet) -> None:
    """A fleet begins with those that are ready; where none is, or none is left, it waits, and then ends."""
    second.fault, second.lives = "dead", 0
    for engine in fleet.engines.values():
        engine.server.patience_s = 0.3
    fleet.sync(weights_of(served.model), 0)
    assert fleet.lost == {"second"}
    served.server.fault, served.server.lives = "dead", 0
    with pytest.raises(EngineError, match=r"no vLLM server became ready within 0.3 s"):
        fleet.sync(weights_of(served.model), 1)
    recovery = threading.Timer(0.1, lambda: setattr(second, "fault", ""))
    fleet.engines["second"].server.patience_s = 20
    recovery.start()
    fleet.sync(weights_of(served.model), 2)
    assert (fleet.lost, second.version) == ({"first"}, "2")


@pytest.mark.slow
def test_servers_start_at_once(
    served: Setting, second: StandIn, fleet: EngineFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is ready before all are started: one that is waited for alone is late. Their files are written one after the
    other: two threads of Python 3.11 that parse the encoders' code fail.
    """
    writers = []
    for engine in fleet.engines.values():
        write = engine.files.write_config
        monkeypatch.setattr(
            engine.files,
            "write_config",
            lambda model, write=write: (writers.append(threading.current_thread()), write(model)),
        )
    processes = {}
    for server, (name, engine) in zip((served.server, second), fleet.engines.items(), strict=True):
        server.fault, server.lives, server.model_name = "dead", 0, str(engine.folder)
        engine.server.process = processes[name] = Together(server, processes)
    fleet.sync(weights_of(served.model), 0)
    assert fleet.lost == set()
    assert [process.starts for process in processes.values()] == [1, 1]
    assert writers == [threading.current_thread()] * 2


@pytest.mark.slow
def test_without_any_server_the_call_ends(served: Setting, second: StandIn, fleet: EngineFleet) -> None:
    fleet.sync(weights_of(served.model), 0)
    for server in (served.server, second):
        server.fault, server.lives = "dead", 0
    with pytest.raises(EngineError, match="lost 1 times in one call"):
        fleet.generate(served.requests)
    with pytest.raises(EngineError, match="all servers \\(first, second\\) are lost until the next weights"):
        fleet.generate(served.requests)


class Replacing(VLLMProcess):
    """Has a server that is never ready before `be_ready`.

    Args:
        server: What it starts.
    """

    def __init__(self, server: StandIn) -> None:
        super().__init__("python")
        self.server, self.starts = server, 0

    def ended(self, folder: Path) -> bool:
        return self.starts == 0 and self.server.fault == "dead"

    def kill(self, folder: Path) -> None:
        self.server.fault, self.server.lives = "dead", 0

    def start(self, folder: Path, url: str) -> bool:
        self.starts += 1
        return True

    def be_ready(self) -> None:
        """Let the server that was started answer."""
        self.server.fault = ""


class Together(Replacing):
    """Is ready once all are started.

    Args:
        server: What it starts.
        processes: All, by name.
    """

    def __init__(self, server: StandIn, processes: Mapping[str, Replacing]) -> None:
        super().__init__(server)
        self.processes = processes

    def start(self, folder: Path, url: str) -> bool:
        if self.starts:
            return False
        super().start(folder, url)
        if all(process.starts for process in self.processes.values()):
            for process in self.processes.values():
                process.be_ready()
        return True


class Counting:
    """A server that notes what it is asked for.

    Args:
        calls: What the fleet asks of all its servers.
    """

    is_caller = True

    def __init__(self, calls: list[GenerateRequest]) -> None:
        self.given, self.asked = calls, list[GenerateRequest]()

    def calls(self, requests: Any) -> list[GenerateRequest]:
        return self.given

    def submit(self, calls: list[GenerateRequest]) -> Future[list[GenerateReply]]:
        self.asked += calls
        done = Future[list[GenerateReply]]()
        done.set_result([GenerateReply((call.seed,), (0.0,), "0", call.prompt) for call in calls])
        return done

    def answers(self, requests: Any, pending: Future[list[GenerateReply]]) -> Callable[[], Any]:
        return pending.result


@pytest.mark.slow
def test_scenes_of_the_same_words_are_prompts_of_their_own(served: Setting) -> None:
    """Pictures of equal size have equal placeholders: the tokens of eight scenes, four answers each, are the same."""
    calls = []
    for scene in range(8):
        rows: Layout = ("batched", {"keep_on_cpu": False})
        media = (PromptMedia("lidar", {"lidar_values": (torch.full((1, 4), float(scene)), rows)}, 1, 1),)
        calls += [GenerateRequest((5, 6, 7), media, 4 * scene + k, None, (), 8, 1.0) for k in range(4)]
    servers = {name: Counting(calls) for name in ("first", "second")}
    fleet = EngineFleet(served.model, {name: lambda _, own=own: own for name, own in servers.items()})  # type: ignore[misc]
    replies: list[Any] = fleet.generate(served.requests)
    assert [reply.tokens for reply in replies] == [(call.seed,) for call in calls]
    parts = [{call.media[0].tensors["lidar_values"][0][0, 0].item() for call in own.asked} for own in servers.values()]
    assert max(map(len, parts)) <= 5, "1.25 times the mean"
    assert not parts[0] & parts[1], "a scene's answers stay together"


def test_one_server_is_no_fleet(served: Setting) -> None:
    with pytest.raises(ValueError, match="at least two, or stage/sampler=vllm"):
        EngineFleet(served.model, {"first": dataclasses.replace})  # type: ignore[dict-item]
