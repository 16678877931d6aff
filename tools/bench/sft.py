"""A step of supervised fine-tuning, ours against `transformers.Trainer` and trl's `SFTTrainer`: tokens a second.

    OMP_NUM_THREADS=1 python -m tools.bench.sft [--repeats 5 --steps 30 --rows 8 --micro 4 --out ...]
    OMP_NUM_THREADS=1 python -m tools.bench.sft --length 512 --images 1 --supervised 0.3 [--unequal]
    python -m tools.bench.sft --device cuda --size 0.6b|1.7b|2b-vl [--checkpointing] [--compile] [--length 2048]

The sides take turns in one process, each turn with a new model of the same weights, the same batches, the same AdamW,
schedule, clipping and precision, each with its own default attention or all with `--attention`
(`tools.bench.sft_sides`).
Data are read before. Sensors and their encoders are left out: the model is Qwen3-VL, images and text. On a CPU the tiny
model trains in float32 on conversations about the built-in world, or with `--length` on made-up rows, each side's
figure the median over its steps; on a GPU the steps hold made-up rows of `--length` tokens, the last `--supervised`
share of them learned, and the figure is that of the whole turn. With `--unequal`, the lengths of made-up rows are drawn
between a sixteenth of `--length` and all of it, on a logarithmic scale, and half of the rows have images: a mixture of
short answers and long descriptions. A peer gets such rows padded to the longest of their micro-batch, as its own
collator would pad them; ours lays them out without padding.

MFU counts what training needs (`framework.model.flops`, three forward passes, logits where something is learned),
recomputation not, for all sides alike, against the dense bf16 peak of the GPU's data sheet (a GPU that is not in
`PEAKS`: what a matrix product reaches).
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.nn.utils.rnn import pad_sequence

from framework.model.backbone import RandomBackbone, make_config
from framework.model.flops import forward_flops
from framework.objective.supervised import supervised_tokens
from framework.scene.batch import IGNORE_INDEX, MicroBatch
from tools.bench.machine import write_result
from tools.bench.peers import PEERS, versions
from tools.bench.sft_sides import Clock, OurSupervisedModule, SupervisedJob, SupervisedSide, Turn

PRESETS = Path(__file__).resolve().parents[2] / "conf/model/backbone"
PEAKS = {"H100 80GB HBM3": 989e12, "H200": 989e12, "A100": 312e12}
"""FLOP/s by what a GPU's name holds, as its data sheet has them: bf16, dense."""
QWEN3 = {"0.6b": {"hidden_size": 1024, "intermediate_size": 3072}, "1.7b": {}}
"""What the language models of Qwen3 (arXiv 2505.09388, table 1) change in that of Qwen3-VL-2B."""
SIDES = {"tiny": 8}
"""Patches along a made-up image, which is square, by size: 128 pixels, 16 tokens."""
SIDE = 32
"""The same for all other sizes: 512 pixels, 256 tokens."""
BAR = 1.0


# What is trained


def architecture_of(size: str) -> dict[str, Any]:
    """The numbers of a size; a language model alone keeps the tiny vision tower, which then sees nothing."""
    name = "tiny" if size == "tiny" else "qwen3_vl_2b"
    architecture: dict[str, Any] = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())["architecture"]
    if size in QWEN3:
        text = architecture["text"] | QWEN3[size]
        vision = architecture_of("tiny")["vision"] | {"out_hidden_size": text["hidden_size"]}
        architecture |= {"text": text, "vision": vision}
    return architecture


def rendered(architecture: Mapping[str, Any], rows: int, micro: int, steps: int) -> tuple[list[Any], list[str]]:
    """Steps of conversations about the built-in world with a camera's image each, and their special tokens."""
    from framework.recipe.compose import compose
    from framework.recipe.instantiate import instantiate

    options = [f"data.global_batch={rows}", f"data.micro_batch={micro}"]
    task = instantiate(compose(["recipe=demo", "scale=tiny", "data.workers=0", *options]))
    pipeline, stage_range = replace(task.data, sensors={}), next(task.curriculum.stage_ranges())
    processor = RandomBackbone(architecture).processor(pipeline.special_tokens)
    with tempfile.TemporaryDirectory() as folder:
        where: dict[str, Any] = {"stage": stage_range.name, "samples": 10**6, "seed": 0, "folder": Path(folder)}
        loader = pipeline.loader(stage_range.stage.mixture, processor, **where)
        return [batch for batch, _ in zip(loader, range(steps), strict=False)], pipeline.special_tokens


@dataclass(frozen=True)
class Rows:
    """Made-up rows of `length` tokens, of which the last `supervised` share is learned, after `images` images of `side`
    patches along each edge. `unequal` rows are at most as long, and each second one has no image.
    """

    length: int
    supervised: float
    images: int
    side: int = SIDE
    unequal: bool = False

    def batch(self, architecture: Mapping[str, Any], rows: int, generator: torch.Generator) -> MicroBatch:
        """A micro-batch of `rows` rows, padded on the right."""
        if not self.unequal:
            return self._equal(architecture, rows, generator)
        each = []
        for row in range(rows):
            share = 16 ** (float(torch.rand((), generator=generator)) - 1)
            images = self.images * (row % 2)
            length = max(round(self.length * share), self.images * ((self.side // 2) ** 2 + 2) + 8)
            each.append(replace(self, length=length, images=images)._equal(architecture, 1, generator))
        batch = MicroBatch(scenes=[None] * rows)  # type: ignore[list-item]  # only counted
        for name, padding in (
            ("input_ids", 0),
            ("attention_mask", 0),
            ("labels", IGNORE_INDEX),
            ("mm_token_type_ids", 0),
        ):
            of_rows = [one[name][0] for one in each]  # type: ignore[literal-required]
            batch[name] = pad_sequence(of_rows, batch_first=True, padding_value=padding)  # type: ignore[literal-required]
        for name in ("pixel_values", "image_grid_thw"):
            parts = [one[name] for one in each if name in one]  # type: ignore[literal-required]
            if parts:
                batch[name] = torch.cat(parts)  # type: ignore[literal-required]
        return batch

    def _equal(self, architecture: Mapping[str, Any], rows: int, generator: torch.Generator) -> MicroBatch:
        ids = RandomBackbone(architecture).processor().tokenizer.convert_tokens_to_ids
        special = [ids(f"<|{name}|>") for name in ("vision_start", "image_pad", "vision_end")]
        vision = architecture["vision"]
        merged = (self.side // vision["spatial_merge_size"]) ** 2
        seen = torch.tensor([special[0], *[special[1]] * merged, special[2]]).repeat(self.images)
        if len(seen) > self.length:
            raise SystemExit(f"--length {self.length}: {self.images} images take {len(seen)} tokens; give more")
        # Words are ids of the upper half, or of the lower where the small tokenizer's special tokens lie in the upper.
        vocabulary = architecture["text"]["vocab_size"]
        first = 0 if max(special) >= vocabulary // 2 else vocabulary // 2
        size = (rows, self.length - len(seen))
        words = torch.randint(first, first + vocabulary // 2, size, generator=generator)
        input_ids = torch.cat([seen.expand(rows, -1), words], dim=1)
        labels = input_ids.clone()
        labels[:, : max(len(seen), round(self.length * (1 - self.supervised)))] = IGNORE_INDEX
        batch = MicroBatch(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            labels=labels,
            mm_token_type_ids=(input_ids == special[1]).long(),
            scenes=[None] * rows,  # type: ignore[list-item]  # only counted
        )
        if self.images:
            width = 3 * vision["temporal_patch_size"] * vision["patch_size"] ** 2
            count = rows * self.images
            batch["pixel_values"] = torch.randn(count * self.side**2, width, generator=generator)
            batch["image_grid_thw"] = torch.tensor([[1, self.side, self.side]]).repeat(count, 1)
        return batch

    def steps(self, architecture: Mapping[str, Any], rows: int, micro: int, steps: int) -> list[list[MicroBatch]]:
        """Steps of `rows` rows, `micro` a micro-batch."""
        generator = torch.Generator().manual_seed(0)
        return [[self.batch(architecture, micro, generator) for _ in range(0, rows, micro)] for _ in range(steps)]


# Measuring


def measure(side: SupervisedSide, job: SupervisedJob) -> Turn:
    """One turn of a side, from nothing and back to it."""
    clock = Clock(job)
    if job.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    loss = side.train(job, clock)
    peak = torch.cuda.max_memory_allocated() if job.device == "cuda" else 0
    torch._dynamo.reset()
    gc.collect()
    if job.device == "cuda":
        torch.cuda.empty_cache()
    return clock.turn(loss, peak)


def run(job: SupervisedJob, sides: Mapping[str, SupervisedSide], repeats: int) -> dict[str, list[Turn]]:
    """All turns, the sides in turn: every repeat begins with another."""
    turns: dict[str, list[Turn]] = {name: [] for name in sides}
    for repeat in range(repeats):
        first = repeat % len(sides)
        for name in [*list(sides)[first:], *list(sides)[:first]]:
            turns[name].append(measure(sides[name], job))
            print(name, f"{tokens_per_s(turns[name][-1], job):.0f} tokens/s", flush=True)
    return turns


def tokens_per_s(turn: Turn, job: SupervisedJob) -> float:
    """The median over the steps that count; on a GPU, whose steps overlap, over all of them together."""
    each = [sum(int(micro["attention_mask"].sum()) for micro in step) for step in job.batches]
    first = job.length - len(turn.seconds)
    tokens = [each[(first + index) % len(each)] for index in range(len(turn.seconds))]
    if job.device == "cuda":
        return sum(tokens) / sum(turn.seconds)
    return statistics.median(count / seconds for count, seconds in zip(tokens, turn.seconds, strict=True))


def flops_per_token(job: SupervisedJob) -> float:
    """What a token of these batches costs to train, on average."""
    config = make_config(job.architecture, "sdpa")
    vocabulary, flops, tokens = config.text_config.vocab_size, 0.0, 0
    for micro in (micro for step in job.batches for micro in step):
        for mask, labels in zip(micro["attention_mask"], micro["labels"], strict=True):
            length = int(mask.sum())
            tokens += length
            flops += forward_flops(config, length, 0, supervised_tokens(labels[None]), vocabulary).total
        patches = micro["image_grid_thw"].prod(dim=1).tolist() if "image_grid_thw" in micro else []
        flops += sum(forward_flops(config, 0, count, 0, vocabulary).total for count in patches)
    return 3 * flops / tokens


def peak_flops() -> tuple[float, str]:
    """FLOP/s of this GPU, and where that is from."""
    name = torch.cuda.get_device_name()
    known = [peak for part, peak in PEAKS.items() if part in name]
    if known:
        return known[0], "data sheet"
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for index in range(13):
        if index == 3:
            start.record()
        a @ b
    end.record()
    torch.cuda.synchronize()
    return 10 * 2 * 8192**3 / (start.elapsed_time(end) / 1e3), "a matrix product"


# What comes of it


def figures_of(turns: Mapping[str, Sequence[Turn]], job: SupervisedJob) -> dict[str, Any]:
    """Medians, every repeat, and how many times as fast ours is."""
    rates = {name: [tokens_per_s(turn, job) for turn in results] for name, results in turns.items()}
    ratios = {
        name: [ours / theirs for ours, theirs in zip(rates["ours"], results, strict=True)]
        for name, results in rates.items()
        if name != "ours"
    }
    losses = {name: results[0].first_loss for name, results in turns.items()}
    figures: dict[str, Any] = {
        "tokens_per_s": {name: statistics.median(results) for name, results in rates.items()},
        "tokens_per_s_of_each_repeat": rates,
        "step_ms": {name: _ms(s for turn in results for s in turn.seconds) for name, results in turns.items()},
        "step_core_ms": {name: _ms(s for turn in of for s in turn.core_seconds) for name, of in turns.items()},
        "noise": {name: (max(results) - min(results)) / statistics.median(results) for name, results in rates.items()},
        "ratio": {name: statistics.median(results) for name, results in ratios.items()},
        "ratio_of_each_repeat": ratios,
        "bar": BAR,
        "first_step_loss": losses,
        "first_step_loss_difference": {name: abs(loss - losses["ours"]) for name, loss in losses.items()},
    }
    cores = figures["step_core_ms"]
    figures["core_ratio"] = {name: cores[name] / cores["ours"] for name in ratios}
    if job.device == "cuda":
        peak, source = peak_flops()
        cost = flops_per_token(job)
        figures["peak_memory_gib"] = {name: max(t.peak for t in results) / 2**30 for name, results in turns.items()}
        figures["mfu"] = {name: rate * cost / peak for name, rate in figures["tokens_per_s"].items()}
        figures |= {"device": torch.cuda.get_device_name(), "peak_flops": peak, "peak_flops_from": source}
    return figures


def _ms(seconds: Iterable[float]) -> float:
    return 1e3 * statistics.median(seconds)


def shape_of(job: SupervisedJob) -> dict[str, float]:
    """How large a step is, on average, and the model."""
    steps = len(job.batches)
    micros = [micro for step in job.batches for micro in step]
    with torch.device("meta"):
        parameters = sum(p.numel() for p in RandomBackbone(job.architecture).build(None).parameters())
    return {
        "parameters": parameters,
        "tokens_of_a_step": sum(int(micro["attention_mask"].sum()) for micro in micros) / steps,
        "positions_of_a_step": sum(micro["attention_mask"].numel() for micro in micros) / steps,
        "supervised_tokens_of_a_step": sum(supervised_tokens(micro["labels"]) for micro in micros) / steps,
        "patches_of_a_step": sum(len(micro.get("pixel_values", ())) for micro in micros) / steps,
    }


def table(figures: Mapping[str, Any]) -> str:
    """A line for each side."""
    lines = [f"{'side':<24}{'tokens/s':>10}{'step ms':>9}{'noise':>7}{'ours/this':>11}{'core ms':>9}{'first loss':>12}"]
    for name, rate in figures["tokens_per_s"].items():
        ratio = figures["ratio"].get(name)
        line = f"{name:<24}{rate:>10.0f}{figures['step_ms'][name]:>9.1f}{figures['noise'][name]:>7.1%}"
        line += f"{ratio:>11.3f}" if ratio else f"{'':>11}"
        line += f"{figures['step_core_ms'][name]:>9.1f}{figures['first_step_loss'][name]:>12.6f}"
        if "mfu" in figures:
            line += f"  MFU {figures['mfu'][name]:.1%}  {figures['peak_memory_gib'][name]:.1f} GiB"
        lines.append(line)
    return "\n".join(lines)


def make_job(options: argparse.Namespace) -> SupervisedJob:
    """What the options ask for."""
    architecture, special = architecture_of(options.size), list[str]()
    if options.device == "cpu" and options.size == "tiny" and options.length is None:
        batches, special = rendered(architecture, options.rows, options.micro, options.batches)
    else:
        images = {"2b-vl": 4}.get(options.size, 0) if options.images is None else options.images
        side = SIDES.get(options.size, SIDE)
        rows = Rows(options.length or 2048, options.supervised, images, side, options.unequal)
        batches = rows.steps(architecture, options.rows, options.micro, options.batches)
    return SupervisedJob(
        architecture,
        special,
        batches,
        options.steps,
        options.device,
        options.precision or {"cpu": "32-true", "cuda": "bf16-mixed"}[options.device],
        options.attention,
        options.optimizer,
        options.checkpointing,
        options.compile,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=("tiny", *QWEN3, "2b-vl"), help="default: tiny on a CPU, 0.6b on a GPU")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30, help="that count, of a turn")
    parser.add_argument("--rows", type=int, default=8, help="of a step")
    parser.add_argument("--micro", type=int, default=4, help="rows of a micro-batch; must divide the rows")
    parser.add_argument("--batches", type=int, default=4, help="different steps, trained in turn")
    parser.add_argument("--length", type=int, help="tokens of a made-up row; default: 2048, on a CPU conversations")
    parser.add_argument("--unequal", action="store_true", help="made-up rows of very different lengths")
    parser.add_argument("--supervised", type=float, default=1.0, help="share of a made-up row that is learned")
    parser.add_argument("--images", type=int, help="of a made-up row; default: 4 with 2b-vl")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed", "bf16-true"))  # float8 is ours alone
    parser.add_argument("--attention", choices=("auto", "sdpa", "eager", "flash_attention_2"), default="auto")
    parser.add_argument("--optimizer", choices=("fused", "foreach", "plain"), default="fused", help="AdamW's kind")
    parser.add_argument("--checkpointing", action="store_true", help="recompute blocks in the backward pass")
    parser.add_argument("--compile", action="store_true", help="ours block by block, a peer as its flag does")
    parser.add_argument("--out", type=Path, help="default: tools/bench/results/sft_DEVICE.json")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("tools.bench.sft: torch finds no CUDA device on this machine; nothing was measured", file=sys.stderr)
        raise SystemExit(2)
    if options.rows % options.micro:
        parser.error(f"--micro {options.micro} does not divide --rows {options.rows}")
    options.size = options.size or {"cpu": "tiny", "cuda": "0.6b"}[options.device]
    options.out = options.out or Path(f"tools/bench/results/sft_{options.device}.json")
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if options.device == "cpu":
        torch.set_num_threads(1)

    job = make_job(options)
    needs = {name: versions(peer) for name, peer in PEERS.items()}
    sides: dict[str, SupervisedSide] = {"ours": OurSupervisedModule()}
    sides |= {name: peer for name, peer in PEERS.items() if all(needs[name].values())}
    before = os.getloadavg()
    turns = run(job, sides, options.repeats)
    figures = figures_of(turns, job) | {
        "shape": shape_of(job),
        "peers": {name: {p: v or "not installed" for p, v in installed.items()} for name, installed in needs.items()},
        "load_before_and_after": [before[0], os.getloadavg()[0]],
    }
    settings = vars(options) | {"omp_num_threads": os.environ.get("OMP_NUM_THREADS")}
    settings |= {"cores": sorted(os.sched_getaffinity(0)), "precision": job.precision}
    write_result(options.out, "sft", settings, figures)
    print(table(figures))


if __name__ == "__main__":
    main()
