"""One rank of the invariance test: the gradient of one step of reinforcement learning, cut up in every way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby, product
from operator import add
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import yaml
from torch import Tensor
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from framework.data.render.collate import SpecialIds, collate, collate_packed, collate_shared_prefix
from framework.data.render.packing import pack
from framework.data.render.sample import Rendered, Sample
from framework.model.backbone import RandomBackbone
from framework.model.language_action import LanguageActionModel
from framework.model.shared_prefix import answer_token_positions
from framework.objective.diagnostics import Diagnostics
from framework.objective.normalisation import loss_scale, sum_over_ranks
from framework.objective.policy import PolicyObjective, SampledTokens
from framework.objective.supervised import next_token_positions
from framework.parallel.mesh import DataRank, Mesh
from framework.parallel.parallelism import world_size
from framework.parallel.sharding import synchronise
from framework.scene.batch import IGNORE_INDEX, MicroBatch
from framework.scene.types import Scene
from tests.objective.presets import PRESETS, preset

OBJECTIVES = ("dapo", "grpo", "gspo")
MICRO_BATCHES = (1, 2, 4)
LAYOUTS = ("padded", "packed", "shared")
"""An answer a row; several answers, each with its prompt; a prompt with its answers, as the training step has them."""
WHOLE = 4096
"""A chunk that holds all tokens of a micro-batch. Of a sharded model every chunk gathers the head's weights, and ranks
with more chunks than others would wait for them for ever.
"""
ROW = 96
"""Tokens of a packed row."""
GROUPS_OF_RANKS = {1: [16], 2: [6, 10], 4: [2, 3, 7, 4]}
"""How many of the 16 groups each rank has."""
LOG_RATIOS = torch.tensor([-0.5, -0.1, 0.05, 0.1, 0.6, 3.0])
"""To the old policy: within the bounds, beyond either and beyond the dual clip, none so near to one that rounding could
decide. GSPO's are a thousandth.
"""


@dataclass(frozen=True)
class Answers:
    """All answers of the step: each one's group, `tokens` `(n_i,)` and `logprobs` `(n_i,)` by whose they are; every
    group's prompt `(p_g,)` and all `rewards` `(s,)`.
    """

    prompts: list[Tensor]
    groups: list[int]
    tokens: list[Tensor]
    rewards: Tensor
    logprobs: dict[str, list[Tensor]]

    def prompt(self, answer: int) -> Sample:
        """What an answer is to, as a sample."""
        prompt = self.prompts[self.groups[answer]]
        return _sample(prompt, torch.full_like(prompt, IGNORE_INDEX))

    def rendered(self, answer: int) -> Sample:
        """A prompt and one answer to it, as a sample."""
        prompt, said = self.prompts[self.groups[answer]], self.tokens[answer]
        return _sample(torch.cat([prompt, said]), torch.cat([torch.full_like(prompt, IGNORE_INDEX), said]))


def _sample(ids: Tensor, labels: Tensor) -> Sample:
    return Sample(Rendered(ids, labels, media={}), Scene(id="", kind="made"), "")


def make_model() -> LanguageActionModel:
    """A small model of the recipes' kind, the same in every process."""
    architecture: dict[str, Any] = yaml.safe_load((PRESETS.parents[1] / "model" / "backbone" / "tiny.yaml").read_text())
    architecture = architecture["architecture"]
    architecture["text"] |= {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    architecture["vision"] |= {"out_hidden_size": 64}
    torch.manual_seed(0)
    model = LanguageActionModel(RandomBackbone(architecture))
    model.run_unused_encoders = True
    return model


def make_answers(model: LanguageActionModel) -> Answers:
    """16 prompts of 3 to 40 tokens, each with 2 to 8 answers of 1 to 30; the policies lie around `model`'s."""
    generator = torch.Generator().manual_seed(0)

    def whole(low: int, high: int, count: int) -> Tensor:
        return torch.randint(low, high + 1, (count,), generator=generator)

    prompts = [whole(10, 1000, length) for length in whole(3, 40, 16).tolist()]
    groups = torch.repeat_interleave(torch.arange(16), whole(2, 8, 16)).tolist()
    tokens = [whole(10, 1000, length) for length in whole(1, 30, len(groups)).tolist()]
    rewards = torch.rand(len(groups), generator=generator)
    answers = Answers(prompts, groups, tokens, rewards, {})
    every = list(range(len(groups)))
    laid = lay(answers, every, "padded")
    with torch.no_grad():
        hidden = model(laid.batch).flatten(0, 1)[laid.source_positions]
        logprobs = model.head(hidden).log_softmax(-1).gather(1, laid.target_ids[:, None])[:, 0]
    now = list(logprobs.split([len(said) for said in tokens]))

    def moved(scale: float) -> list[Tensor]:
        return [one + scale * torch.randn(len(one), generator=generator) for one in now]

    tokenwise = [one - LOG_RATIOS[whole(0, 5, len(one))] for one in now]
    answerwise = [one - 1e-3 * LOG_RATIOS[whole(0, 5, 1)] for one in now]
    answers.logprobs.update(old=tokenwise, gspo_old=answerwise, engine=moved(0.5), reference=moved(0.5))
    return answers


class Laid(NamedTuple):
    """A micro-batch of the answers `order`; the flat `source_positions` predict their `n` tokens `target_ids`."""

    batch: MicroBatch
    source_positions: Tensor
    target_ids: Tensor
    order: list[int]


def lay(answers: Answers, chosen: Sequence[int], layout: str) -> Laid:
    """The answers `chosen` as one micro-batch."""
    special = SpecialIds(pad=0, image=-1, video=-1)
    if layout == "shared":
        groups = [list(group) for _, group in groupby(chosen, answers.groups.__getitem__)]
        prompts = [answers.prompt(group[0]) for group in groups]
        said = [[answers.tokens[answer].tolist() for answer in group] for group in groups]
        batch = collate_shared_prefix(prompts, said, special)
        positions, sources = answer_token_positions(batch["shared_prefix"], batch["attention_mask"])
        return Laid(batch, sources, batch["input_ids"].flatten()[positions], list(chosen))
    samples = [answers.rendered(answer) for answer in chosen]
    if layout == "padded":
        rows, batch = [[place] for place in range(len(chosen))], collate(samples, special)
    else:
        rows = pack([len(sample.rendered.input_ids) for sample in samples], ROW)
        batch = collate_packed([[samples[place] for place in row] for row in rows], special)
    mask, target_ids = next_token_positions(batch["labels"])
    return Laid(batch, mask.flatten().nonzero()[:, 0], target_ids, [chosen[place] for row in rows for place in row])


@dataclass(frozen=True)
class Outcome:
    """The step's mean loss, its metrics and its gradient by parameter, over all ranks."""

    loss: float
    metrics: dict[str, float]
    gradient: dict[str, Tensor]


def step(
    model: LanguageActionModel,
    answers: Answers,
    name: str,
    micro_batches: int,
    layout: str,
    dp_rank: DataRank,
    chunk: int = 64,
) -> Outcome:
    """The gradient as the training step computes it: see `PolicyObjective`."""
    objective: PolicyObjective = preset(name, f"stage.objective.chunk={chunk}")
    first = sum(GROUPS_OF_RANKS[dp_rank.world][: dp_rank.rank])
    own = range(first, first + GROUPS_OF_RANKS[dp_rank.world][dp_rank.rank])
    here = [answer for answer, group in enumerate(answers.groups) if group in own]
    groups = torch.tensor([answers.groups[answer] - first for answer in here])
    advantages = dict(zip(here, objective.advantages(answers.rewards[here], groups), strict=True))
    counts = torch.tensor([sum(len(answers.tokens[answer]) for answer in here), len(here)])
    denominator = objective.aggregation.denominator(*sum_over_ranks(counts, dp_rank.group).tolist())
    scale, total, seen = loss_scale(denominator, dp_rank.world), torch.zeros(()), list[Diagnostics]()
    model.zero_grad()
    for number in range(micro_batches):
        laid = lay(answers, here[number::micro_batches], layout)
        synchronise(model, last=number + 1 == micro_batches)
        scored = objective.score(model(laid.batch).flatten(0, 1)[laid.source_positions], model.head, laid.target_ids)
        found = objective(scored, sampled(answers, laid.order, advantages, name))
        (found.total * scale).backward()
        total, seen = total + found.total.detach(), [*seen, found.diagnostics]
    metrics = reduce(add, seen, Diagnostics.zeros(torch.device("cpu"))).all_reduce(dp_rank.group).metrics()
    gradient = {name: whole(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}
    return Outcome(float(sum_over_ranks(total, dp_rank.group)) / denominator, metrics, gradient)


def sampled(answers: Answers, order: list[int], advantages: dict[int, Tensor], name: str) -> SampledTokens:
    """What is known of the answers `order`, whose tokens come in that order."""
    lengths = torch.tensor([len(answers.tokens[answer]) for answer in order])
    old, engine, reference = (
        torch.cat([answers.logprobs[whose][answer] for answer in order])
        for whose in ("gspo_old" if name == "gspo" else "old", "engine", "reference")
    )
    samples = torch.repeat_interleave(torch.arange(len(order)), lengths)
    return SampledTokens(samples, torch.stack([advantages[a] for a in order]), old, engine, reference)


def whole(tensor: Tensor) -> Tensor:
    """`tensor` of all ranks."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def ways() -> Iterator[tuple[str, int, str]]:
    """Objective, micro-batches and layout of every step of a rank."""
    return product(OBJECTIVES, MICRO_BATCHES, LAYOUTS)


def ways_of_ranks() -> Iterator[tuple[str, int, str]]:
    """Those of several ranks: the fewest and the most micro-batches. One rank goes all `ways`."""
    return product(OBJECTIVES, (MICRO_BATCHES[0], MICRO_BATCHES[-1]), LAYOUTS)


def main(folder: Path) -> None:
    """Every way on as many ranks as there are; the first writes `<preset>-<ranks>-<micro-batches>-<layout>.pt`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model, world = make_model(), world_size()
    answers, mesh = make_answers(model), Mesh().build("cpu", world, world)
    dp_rank = DataRank.on(mesh)
    for unit in (*model.blocks(), model):
        fully_shard(unit, mesh=mesh["replicate", "shard"])
    for entry in ("embed", "run_backbone", "head"):
        register_fsdp_forward_method(model, entry)
    for name, micro_batches, layout in ways_of_ranks():
        found = step(model, answers, name, micro_batches, layout, dp_rank, WHOLE)
        if dp_rank.rank == 0:
            torch.save(vars(found), folder / f"{name}-{world}-{micro_batches}-{layout}.pt")
    dist.destroy_process_group()
