"""One rank of a run that is killed and resumed, or that moves between meshes."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from framework.checkpoint import staging
from framework.checkpoint.checkpoint_writer import CheckpointWriter
from framework.checkpoint.retention import KeepLast
from framework.checkpoint.save_modes import Asynchronous, Synchronous
from framework.checkpoint.store import CheckpointStore
from tests.checkpoint.forked_daemon import fork_daemons
from tests.checkpoint.toy import PausingWriter, StubbornWriter, wait_for

STEPS = 8


class Model(nn.Module):
    """Sizes that no number of ranks divides, a part cut over ranks, one that is frozen and one that nothing trains."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(5, 8)
        self.down = nn.Linear(8, 7)
        self.out = nn.Linear(7, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 5) to (batch, 3)."""
        hidden = self.down(torch.relu(self.up(x)))
        return self.frozen(self.out(hidden))


def build(seed: int, mesh: tuple[int, int, int] | None) -> tuple[Model, torch.optim.Optimizer]:
    """The model on a mesh of replicas, shards and cut tensors (None: whole on every rank), with an optimizer."""
    torch.manual_seed(seed)
    model = Model()
    if mesh is not None:
        devices = init_device_mesh("cpu", mesh, mesh_dim_names=("replicate", "shard", "tensor"))
        if mesh[2] > 1:
            cuts = {"up": ColwiseParallel(), "down": RowwiseParallel()}
            parallelize_module(model, devices["tensor"], cuts)
        for module in (model.up, model.down, model.out, model):
            fully_shard(module, mesh=devices["replicate", "shard"])
    groups = [{"params": [*model.up.parameters(), *model.down.parameters()], "lr": 1e-2}]
    groups.append({"params": [*model.out.parameters(), *model.unused.parameters()], "lr": 1e-3})
    return model, torch.optim.AdamW(groups, foreach=False)


def train_step(model: Model, optimizer: torch.optim.Optimizer, step: int) -> float:
    """The same samples on every rank."""
    torch.manual_seed(step)
    loss = model(torch.randn(6, 5)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    for parameter in model.parameters():
        if parameter.grad is not None and not isinstance(parameter, DTensor) and dist.is_initialized():
            dist.all_reduce(parameter.grad, dist.ReduceOp.SUM)
            parameter.grad /= dist.get_world_size()
    optimizer.step()
    return loss.item()


def digest(model: Model, optimizer: torch.optim.Optimizer) -> str:
    """Of all weights and optimizer state, whole, and of the optimizer's settings (collective)."""
    state = hashlib.sha256()
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors = dict(model.state_dict())
    for parameter, values in optimizer.state.items():
        tensors |= {f"{names[parameter]}/{key}": value for key, value in values.items()}
    for name, value in sorted(tensors.items()):
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        state.update(name.encode() + whole.detach().contiguous().numpy().tobytes())
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    state.update(json.dumps(settings, sort_keys=True).encode())
    return state.hexdigest()


def pausing(job: dict[str, Any], rank: int) -> Any:
    """The writer of this rank: one that pauses, on the rank and in the phase that the job names."""
    if job.get("pause") is None or rank != job["pause_rank"]:
        return CheckpointWriter
    if job["pause"] == "staging":
        copy, saves = staging._copy, []

        def pause(*tensors: Any) -> None:
            saves.append(1)
            if len(saves) == 2:
                (Path(job["signals"]) / "reached").touch()
                wait_for(Path(job["signals"]) / "go")
            copy(*tensors)

        staging._copy = pause
        return CheckpointWriter
    kind = StubbornWriter if job.get("stubborn") else PausingWriter
    return functools.partial(kind, job["signals"], job["pause"], 4)


def run(job: dict[str, Any], rank: int) -> dict[str, Any]:
    """Train from the newest checkpoint to the last step, with a checkpoint after every second."""
    mesh = tuple(job["mesh"]) if job["mesh"] else None
    model, optimizer = build(0, mesh)
    store = CheckpointStore(Path(job["folder"]), KeepLast(3), Asynchronous("process", 60.0, writer=pausing(job, rank)))
    checkpoint = store.resume(job["attempt"])
    start = 0
    if checkpoint is not None:
        start = checkpoint.step
        store.load(checkpoint, model, optimizer)
    store.start()
    for step in range(start + 1, STEPS + 1):
        train_step(model, optimizer, step)
        store.poll()
        if step % 2 == 0:
            store.save(step, job["attempt"], model, optimizer, {"stage": "toy"}, {"rank": rank})
    assert store.finish()
    store.close()
    return {"start": start, "digest": digest(model, optimizer)}


def reshard(job: dict[str, Any], rank: int) -> dict[str, Any]:
    """Load every checkpoint under `folder` onto every mesh, and save one of each mesh's own."""
    digests, losses = {}, {}
    root = Path(job["folder"])
    sources = sorted(path for path in root.iterdir() if path.is_dir())
    for number, mesh in enumerate(job["meshes"]):
        name = f"{job['world']} ranks on {mesh}"
        for source in sources:
            model, optimizer = build(99 + number, tuple(mesh) if mesh else None)
            store = CheckpointStore(source, KeepLast())
            checkpoint = store.newest()
            assert checkpoint is not None
            store.load(checkpoint, model, optimizer)
            digests[f"{source.name} -> {name}"] = digest(model, optimizer)
            losses[f"{source.name} -> {name}"] = [train_step(model, optimizer, step) for step in (10, 11)]
        model, optimizer = build(0, tuple(mesh) if mesh else None)
        if sources:
            store = CheckpointStore(sources[0], KeepLast())
            checkpoint = store.newest()
            assert checkpoint is not None
            store.load(checkpoint, model, optimizer)
        else:
            for step in (1, 2, 3):
                train_step(model, optimizer, step)
            digests["the first"] = digest(model, optimizer)
        save_mode = Asynchronous("thread") if number % 2 else Synchronous()
        with CheckpointStore(root / name, KeepLast(), save_mode) as store:
            store.save(3, 1, model, optimizer, {}, {"rank": rank})
            assert store.finish()
    return {"digests": digests, "losses": losses}


def stage(job: dict[str, Any], rank: int) -> dict[str, Any]:
    """Train a stage under Lightning, with an event at step 5."""
    # The other jobs need not wait for these.
    from lightning.fabric.plugins.environments import TorchElasticEnvironment
    from lightning.pytorch.strategies import DDPStrategy
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from tests.checkpoint.stage import fit

    place = {
        "devices": 2,
        "strategy": DDPStrategy(process_group_backend="gloo"),
        "plugins": [TorchElasticEnvironment()],
    }
    try:
        fit(Path(job["folder"]), {5: job["event"]}, every=99, save_mode=Asynchronous("thread"), **place)
    except SIGTERMException:
        return {"stopped": True}
    return {"stopped": False}


def main(job: dict[str, Any]) -> None:
    """Do the job, and write what came out."""
    torch.set_num_threads(1)
    fork_daemons()
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world > 1:
        dist.init_process_group("gloo")
    found = {"train": run, "reshard": reshard, "fit": stage}[job["task"]](job, rank)
    Path(job["out"], f"rank-{rank}.json").write_text(json.dumps(found))
    if world > 1:
        dist.destroy_process_group()
