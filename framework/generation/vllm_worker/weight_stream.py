"""Sends weights from the trainer's rank 0 to every worker of a vLLM server, over a process group of their own.

Both ends are in this module, which needs torch alone: the trainer imports it, and the server's workers find it on their
PYTHONPATH and take `WeightStream` as their `--worker-extension-cls`. vLLM's own NCCL backend needs vLLM's wrapper of
NCCL in the trainer's process, and has no gloo.

A bucket is a header (JSON: names, types, shapes) and the bytes of its tensors; a header of length 0 ends the stream.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import Backend
from torch.distributed import ProcessGroupGloo, Store, TCPStore

TRAINER = 0
"""The sender's rank; the workers' are counted from 1."""


def join(store: Store, rank: int, world: int, backend: str, timeout_s: float) -> Backend:
    """Returns a process group in addition to those that this process has. `backend` is nccl or gloo."""
    timeout = timedelta(seconds=timeout_s)
    if backend == "gloo":
        return ProcessGroupGloo(store, rank, world, timeout)
    from torch.distributed import ProcessGroupNCCL  # not in every build of torch

    options = ProcessGroupNCCL.Options()
    options._timeout = timeout
    name = "TORCH_NCCL_BLOCKING_WAIT"  # read when a group is made: without it a lost peer ends this process
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        return ProcessGroupNCCL(store, rank, world, options)
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def device_of(backend: str) -> torch.device:
    """Returns the device that `backend` sends from and receives on."""
    return torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")


def send(group: Backend, weights: Iterable[tuple[str, Tensor]], device: torch.device, bucket_bytes: int) -> None:
    """Broadcasts `weights` from `device`, about `bucket_bytes` at a time.

    Raises `ConnectionError` when a worker is lost.
    """
    bucket: list[tuple[str, Tensor]] = []
    for name, tensor in weights:
        bucket.append((name, tensor.to(device).contiguous()))
        if sum(held.nbytes for _, held in bucket) >= bucket_bytes:
            _send_bucket(group, bucket, device)
            bucket = []
    if bucket:
        _send_bucket(group, bucket, device)
    _broadcast(group, torch.zeros(1, dtype=torch.int64, device=device))


def received(group: Backend, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Yields the weights that `send` broadcasts. Every bucket has memory of its own, because vLLM keeps tensors until a
    layer is complete.
    """
    while length := int(_broadcast(group, torch.zeros(1, dtype=torch.int64, device=device))):
        header = _broadcast(group, torch.empty(length, dtype=torch.uint8, device=device))
        entries = json.loads(bytes(header.tolist()))
        sizes = [entry["bytes"] for entry in entries]
        whole = _broadcast(group, torch.empty(sum(sizes), dtype=torch.uint8, device=device))
        for entry, part in zip(entries, whole.split(sizes), strict=True):
            # A slice may begin anywhere, and a view as another type must not.
            yield entry["name"], part.clone().view(getattr(torch, entry["dtype"])).reshape(entry["shape"])


def _send_bucket(group: Backend, bucket: list[tuple[str, Tensor]], device: torch.device) -> None:
    entries = [
        {"name": name, "dtype": str(held.dtype).rpartition(".")[2], "shape": list(held.shape), "bytes": held.nbytes}
        for name, held in bucket
    ]
    header = torch.tensor(list(json.dumps(entries).encode()), dtype=torch.uint8, device=device)
    _broadcast(group, torch.tensor([len(header)], device=device))
    _broadcast(group, header)
    _broadcast(group, torch.cat([held.reshape(-1).view(torch.uint8) for _, held in bucket]))


def _broadcast(group: Backend, tensor: Tensor) -> Tensor:
    try:
        group.broadcast(tensor, TRAINER).wait()  # type: ignore[attr-defined]  # the stubs lack it
    except RuntimeError as error:
        raise ConnectionError(str(error)) from error
    return tensor


class WeightStream:
    """Methods added to a vLLM worker, called by `/collective_rpc` on all workers at once."""

    device: torch.device
    parallel_config: Any
    reload_weights: Callable[..., None]
    weight_stream: tuple[str, Store, Backend, torch.device] | None = None

    def weight_stream_name(self) -> str | None:
        """Returns the name of the group that this worker has joined; None for none."""
        return self.weight_stream[0] if self.weight_stream is not None else None

    def join_weight_stream(self, address: str, port: int, world: int, backend: str, timeout_s: float) -> None:
        """Joins the group of the trainer at `address` and `port`, and leaves any other."""
        self.weight_stream = None
        parallel = self.parallel_config
        rank = 1 + parallel.data_parallel_index * parallel.world_size + parallel.rank
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=timeout_s))
        group = join(store, rank, world, backend, timeout_s)
        self.weight_stream = f"{address}:{port}", store, group, device_of(backend)

    def receive_weights(self) -> None:
        """Loads what the trainer sends. Leaves the group on failure, so that the trainer does not wait."""
        if self.weight_stream is None:
            raise RuntimeError("receive_weights: join_weight_stream comes first")
        _, _, group, device = self.weight_stream
        try:
            self.reload_weights(weights_iterator=received(group, device))
        except BaseException:
            self.weight_stream = None
            raise
