"""Sends weights to a vLLM server's workers over a process group of their own, with the disk as the fallback."""

from __future__ import annotations

import atexit
import logging
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Annotated, Any, Literal

from annotated_types import Interval
from torch import Tensor
from torch._C._distributed_c10d import Backend
from torch.distributed import TCPStore

from framework.generation.engine import EngineError
from framework.generation.vllm_client import LostServerError, VLLMClient
from framework.generation.vllm_worker.weight_stream import TRAINER, device_of, join, send
from framework.recipe.component import component
from framework.recipe.ranges import Seconds
from framework.training.rl.engine.vllm_process import EXTENSION
from framework.training.rl.engine.weight_transfer import WeightFiles

log = logging.getLogger(__name__)


@component
class Collective:
    """Rank 0 broadcasts whole tensors to the workers.

    In the background a copy on the host is written to disk. From there a server that has started, at first or again,
    loads its weights: by then the live weights may be in the middle of an update, and rank 0 in the middle of a
    collective. The next `sync` makes a new group.

    Args:
        backend: nccl from GPU to GPUs, gloo from host to host. NCCL allows no two ranks on one GPU: a server that
            shares the trainer's needs gloo, or the disk.
        address: Address of rank 0, where the workers join.
        timeout_s: Seconds after which a worker that does not join, or does not take a bucket, counts as lost.
        bucket_bytes: Bytes sent at a time, at least.
    """

    def __init__(
        self,
        backend: Literal["nccl", "gloo"],
        address: str,
        timeout_s: Seconds = 300.0,
        bucket_bytes: Annotated[int, Interval(ge=1, le=1 << 40)] = 256 << 20,
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
                "sampler.transfer.backend: NCCL allows no two ranks on one GPU, and sampler.sleeps says that "
                "the server shares the trainer's; set gloo, or transfer: disk"
            )
        shutil.rmtree(files.path(version), ignore_errors=True)  # an earlier attempt's
        copies: dict[str, Tensor] = {}
        stream = self._copied(weights, files, copies)
        arrived = True
        try:
            self._send(stream, version, client, asleep)
        except LostServerError as error:
            log.log(logging.WARNING if self._joined else logging.INFO, "%s: the weights go by disk", error)
            arrived = False
            self._leave()
        for _ in stream:  # whole tensors are gathered from all ranks
            pass
        self._written = self._writer.submit(files.write, version, copies.items())
        if not arrived:
            self._written.result()
        return arrived

    def _copied(
        self, weights: Iterable[tuple[str, Tensor]], files: WeightFiles, copies: dict[str, Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        """Yields the weights for the backend's device, and adds a copy of each on the host to `copies`."""
        for name, tensor in weights:
            copies[name] = files.to_host(name, tensor)
            yield name, tensor.detach().to(files.dtype) if self.backend == "nccl" else copies[name]

    def _send(self, weights: Iterator[tuple[str, Tensor]], version: int, client: VLLMClient, asleep: bool) -> None:
        """Raises `LostServerError` where the server does not answer, or is lost meanwhile."""
        group = self._group(client)
        with client.updating_weights(str(version), asleep), ThreadPoolExecutor(1) as thread:
            receiving = thread.submit(client.call, "receive_weights")
            receiving.add_done_callback(lambda done: group.abort() if done.exception() else None)
            try:
                send(group, weights, device_of(self.backend), self.bucket_bytes)
            except ConnectionError as error:
                raise LostServerError(f"engine {client.url}: lost while receiving weights: {error}") from error
            receiving.result()

    def _group(self, client: VLLMClient) -> Backend:
        """Returns the group of rank 0 and all workers; makes a new one where any of them is not in it."""
        names = set(self._names(client))
        if self._joined is not None and names == {f"{self.address}:{self._joined[0].port}"}:
            return self._joined[1]
        self._leave()
        world, wait = 1 + client.workers(), timedelta(seconds=self.timeout_s)
        store = TCPStore(self.address, 0, is_master=True, timeout=wait, wait_for_workers=False)
        with ThreadPoolExecutor(1) as thread:
            where: dict[str, str | int | float] = {"address": self.address, "port": store.port, "world": world}
            how: dict[str, str | int | float] = {"backend": self.backend, "timeout_s": self.timeout_s}
            joining = thread.submit(client.call, "join_weight_stream", **where, **how)
            try:
                group = join(store, TRAINER, world, self.backend, self.timeout_s)
            except RuntimeError as error:
                raise LostServerError(
                    f"engine {client.url}: its workers do not join at {self.address}: {error}"
                ) from error
            joining.result()
        self._joined = store, group
        return group

    def _names(self, client: VLLMClient) -> list[Any]:
        try:
            return client.call("weight_stream_name")
        except LostServerError as error:
            client.health()
            raise EngineError(
                f"engine {client.url}: its workers cannot receive weights from a group ({error}); start it with "
                f"PYTHONPATH={EXTENSION} and --worker-extension-cls weight_stream.WeightStream, or set transfer: disk"
            ) from error

    def _leave(self) -> None:
        self._joined = None
