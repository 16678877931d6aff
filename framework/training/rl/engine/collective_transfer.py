"""Weights straight to a vLLM server's workers, over a process group of their own; the disk is only fallen back on."""

from __future__ import annotations

import atexit
import logging
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Literal

from torch import Tensor
from torch._C._distributed_c10d import Backend
from torch.distributed import TCPStore

from framework.generation.engine import EngineError
from framework.generation.vllm_client import LostServerError, VLLMClient
from framework.generation.vllm_worker.weight_stream import TRAINER, device_of, join, send
from framework.training.rl.engine.vllm_process import EXTENSION
from framework.training.rl.engine.weight_transfer import WeightFiles

log = logging.getLogger(__name__)


class Collective:
    """Rank 0 broadcasts whole tensors by `backend`: nccl from GPU to GPUs, gloo from host to host.

    The server's workers join at `address`, that of rank 0; one that does not take a bucket within `timeout_s` is lost.
    Some `bucket_bytes` are sent at a time. NCCL takes no two ranks of one GPU: a server that shares the trainer's wants
    gloo, or the disk.

    A copy on the host is written to the disk behind the answers' back. From there any rank gives a server that was
    started anew its weights, so also at first: the live weights may be in the midst of an update by then, and rank 0 in
    the midst of something collective. At the next synchronisation the group is made anew.
    """

    def __init__(
        self,
        backend: Literal["nccl", "gloo"],
        address: str,
        timeout_s: float = 300.0,
        bucket_bytes: int = 256 << 20,
    ) -> None:
        self.backend, self.address, self.timeout_s, self.bucket_bytes = backend, address, timeout_s, bucket_bytes
        self._joined: tuple[TCPStore, Backend] | None = None
        self._writer = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None
        atexit.register(self._leave)  # a group that outlives the interpreter ends it by SIGABRT

    def send(
        self, weights: Iterable[tuple[str, Tensor]], version: int, client: VLLMClient, files: WeightFiles, asleep: bool
    ) -> bool:
        """See `Transfer`. Raises `EngineError` where the server's workers do not know `WeightStream`."""
        if self._written is not None:
            self._written.result()
        if asleep and self.backend == "nccl":
            raise EngineError(
                "engine.transfer.backend: NCCL takes no two ranks of one GPU, and engine.sleeps says that "
                "the server shares the trainer's; set gloo, or transfer: disk"
            )
        shutil.rmtree(files.path(version), ignore_errors=True)  # an earlier attempt's
        kept: dict[str, Tensor] = {}
        passing = self._kept(weights, files, kept)
        arrived = True
        try:
            self._stream(passing, version, client, asleep)
        except LostServerError as error:
            log.log(logging.WARNING if self._joined else logging.INFO, "%s: the weights go by the disk", error)
            arrived = False
            self._leave()
        for _ in passing:  # whole tensors are gathered from all ranks
            pass
        self._written = self._writer.submit(files.write, version, kept.items())
        if not arrived:
            self._written.result()
        return arrived

    def _kept(
        self, weights: Iterable[tuple[str, Tensor]], files: WeightFiles, kept: dict[str, Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            kept[name] = files.keep(name, tensor)
            yield name, tensor.detach().to(files.dtype) if self.backend == "nccl" else kept[name]

    def _stream(self, weights: Iterator[tuple[str, Tensor]], version: int, client: VLLMClient, asleep: bool) -> None:
        """Raises `LostServerError` where the server is not there, or is lost meanwhile."""
        group = self._group(client)
        with client.renewing(str(version), asleep), ThreadPoolExecutor(1) as aside:
            receiving = aside.submit(client.call, "receive_weights")
            receiving.add_done_callback(lambda done: group.abort() if done.exception() else None)
            try:
                send(group, weights, device_of(self.backend), self.bucket_bytes)
            except ConnectionError as error:
                raise LostServerError(f"engine {client.url}: lost while weights were sent: {error}") from error
            receiving.result()

    def _group(self, client: VLLMClient) -> Backend:
        """The group of rank 0 and all workers, made where any of them is not in it."""
        names = set(self._names(client))
        if self._joined is not None and names == {f"{self.address}:{self._joined[0].port}"}:
            return self._joined[1]
        self._leave()
        world, wait = 1 + client.workers(), timedelta(seconds=self.timeout_s)
        store = TCPStore(self.address, 0, is_master=True, timeout=wait, wait_for_workers=False)
        with ThreadPoolExecutor(1) as aside:
            where: dict[str, str | int | float] = {"address": self.address, "port": store.port, "world": world}
            how: dict[str, str | int | float] = {"backend": self.backend, "timeout_s": self.timeout_s}
            joining = aside.submit(client.call, "join_weight_stream", **where, **how)
            try:
                group = join(store, TRAINER, world, self.backend, self.timeout_s)
            except RuntimeError as error:
                raise LostServerError(f"engine {client.url}: does not join at {self.address}: {error}") from error
            joining.result()
        self._joined = store, group
        return group

    def _names(self, client: VLLMClient) -> list[Any]:
        try:
            return client.call("weight_stream_name")
        except LostServerError as error:
            client.health()
            raise EngineError(
                f"engine {client.url}: its workers take no weights from a group ({error}); start it with PYTHONPATH="
                f"{EXTENSION} and --worker-extension-cls weight_stream.WeightStream, or set transfer: disk"
            ) from error

    def _leave(self) -> None:
        self._joined = None
