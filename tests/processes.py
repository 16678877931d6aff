"""Processes that begin with torch, Lightning and transformers imported, which takes a fresh one ten seconds of a core.

They are forked by a server, which each test worker starts when it first needs one. Otherwise each is like one that a
command started: it has its environment, its output and its end, and can be killed.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from framework.__main__ import main
from framework.launch.host import free_port

REPOSITORY = Path(__file__).resolve().parents[1]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.imported"])
Work = Callable[[], object]
"""What a process does, picklable; its exit code comes of it as of the argument of `sys.exit`."""
_SMALL = (
    "recipe=supervised", "scale=tiny", "data.micro_batch=2", "sources.world_train.scenes=48",
    "sources.world_hard.scenes=32", "sources.world_held_out.scenes=2", "sources.world_zero_shot.scenes=2",
)  # fmt: skip
SMALL_SUPERVISED = (*_SMALL, "evals.zero_shot.scenes=1")
"""The overrides of a supervised run that takes seconds a stage."""
UNEVALUATED = (*_SMALL, "evals=[]")
"""Those of one that ends with its training."""

CRASHES = (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS)


class CrashError(AssertionError):
    """Native code of a rank broke down."""


@dataclass
class Running:
    """A process, and the files of what it prints and what it complains of."""

    process: ForkServerProcess
    printed: Path
    complaints: Path

    @property
    def pid(self) -> int:
        """Also its group's."""
        assert self.process.pid is not None
        return self.process.pid

    def lines(self) -> Iterator[str]:
        """What it prints, as it does, to its end."""
        with self.printed.open() as file:
            line, over = "", False
            while not over:
                over = self.process.exitcode is not None
                for piece in file:
                    line += piece
                    if line.endswith("\n"):
                        yield line
                        line = ""
                time.sleep(0.01)

    def wait(self, timeout: float) -> int:
        """Its exit code, as subprocess has it. Raises TimeoutError where it runs for more than `timeout` seconds."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise TimeoutError(f"process {self.pid} has run for more than {timeout} s")
        return self.process.exitcode

    def kill(self) -> None:
        """With all that it started, as far as that is in its group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.kill()  # one that has no group yet

    def finish(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """Its end, and all that it said."""
        code = self.wait(timeout)
        return subprocess.CompletedProcess([], code, self.printed.read_text(), self.complaints.read_text())


@contextmanager
def started(work: Work, environment: Mapping[str, str] | None = None) -> Iterator[Running]:
    """A process in a group of its own, in which `environment` is added to ours; its group is killed in the end."""
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "stdout"), Path(folder, "stderr")
        for file in files:
            file.touch()
        process = SERVER.Process(target=_begin, args=(*files, {**os.environ, **(environment or {})}, work))
        process.start()
        running = Running(process, *files)
        try:
            yield running
        finally:
            running.kill()
            process.join()


def run(
    work: Work, timeout: float = 400, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What came of a process that was left to its end."""
    with started(work, environment) as running:
        return running.finish(timeout)


def framework(*words: str) -> Work:
    """The command `python -m framework WORDS`."""
    return functools.partial(main, words)


def program(module: str, *words: str, folder: Path = REPOSITORY) -> Work:
    """The command `python -m MODULE WORDS`, started in `folder`."""
    return functools.partial(_run_program, module, words, folder)


def _run_program(module: str, words: Sequence[str], folder: Path) -> None:
    os.chdir(folder)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


@contextmanager
def started_ranks(world: int, work: Work) -> Iterator[list[Running]]:
    """As many ranks that do `work`, as torchrun would start them on one node."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "none"}
    sizes = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0"}
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
    with ExitStack() as stack:
        ranks = [stack.enter_context(started(work, meeting | sizes | place)) for place in places]
        try:
            yield ranks
        finally:
            for rank in ranks:
                rank.kill()


def run_ranks(world: int, work: Work, timeout: float = 1500) -> list[str]:
    """What each rank printed. Asserts that all end well, at the first that does not.

    Ranks that crash are started again, once, with a warning: in torch 2.15 a thread of gloo's (pt_gloo_runloop) has
    been seen to find the heap corrupted, about once in a hundred trainings of a model that is cut. `work` is done again
    as a whole.
    """
    try:
        return _ranks_to_their_end(world, work, timeout)
    except CrashError as crash:
        warnings.warn(f"{world} ranks are started again: {crash}", stacklevel=2)
        return _ranks_to_their_end(world, work, timeout)


def _ranks_to_their_end(world: int, work: Work, timeout: float) -> list[str]:
    with started_ranks(world, work) as ranks:
        end_well(ranks, timeout)
        return [rank.printed.read_text() for rank in ranks]


def end_well(ranks: Sequence[Running], timeout: float) -> None:
    """Wait for all. Asserts that they end well, at the first that does not."""
    running = {rank.process.sentinel: rank for rank in ranks}
    while running:
        ended = wait(list(running), timeout)
        assert ended, f"{len(running)} of {len(ranks)} ranks did not end in {timeout} s"
        for sentinel in ended:
            rank = running.pop(int(sentinel))
            if rank.wait(1) != 0:
                _raise_crash(ranks)
                raise AssertionError(rank.complaints.read_text()[-4000:])


def _raise_crash(ranks: Sequence[Running]) -> None:
    """Raises `CrashError` where one of them has crashed; others may have ended before it, for having lost it."""
    for rank in ranks:
        rank.process.join(2)
        if (code := rank.process.exitcode) in CRASHES:
            raise CrashError(f"rank {rank.pid} ended by {signal.Signals(-code).name}")


def _begin(printed: Path, complaints: Path, environment: dict[str, str], work: Work) -> None:
    os.setsid()
    for number, path in ((1, printed), (2, complaints)):
        with path.open("ab") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(REPOSITORY)
    code: object = 1
    try:
        code = work()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()  # which multiprocessing leaves out
    sys.stdout.flush()
    sys.exit(code)
