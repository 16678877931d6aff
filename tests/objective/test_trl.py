"""TRL's own trainer on the same model and tokens: advantages, losses, divergence, correction, gradients and figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from framework.objective.advantages import GroupRelative
from framework.objective.correction import EngineCorrection
from framework.objective.kl import KLPenalty
from framework.objective.policy import PolicyObjective, PolicySum, SampledTokens
from tests.objective.presets import preset

trl = pytest.importorskip("trl", "1.16", reason="the losses are compared with TRL's own where it is installed")
pytest.importorskip("accelerate", reason="TRL's trainer needs accelerate")
datasets = pytest.importorskip("datasets", reason="TRL's trainer needs datasets")

TOKENIZER = Path(__file__).resolve().parents[2] / "framework" / "model" / "tiny"
TEMPERATURE = 0.7
PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
LENGTHS = [3, 8, 1, 5, 2, 2, 7, 6, 4, 1, 8, 3]
"""Four answers to each prompt."""
REWARDS = [0.0, 1.0, 0.5, 3.0, 2.0, 2.0, 2.0, 2.0, -1.0, 0.25, 0.3, 4.0]
"""The second group teaches nothing."""
LONGEST = max(LENGTHS)

LOSSES: dict[str, tuple[dict[str, Any], list[str], float]] = {
    "grpo": ({"loss_type": "grpo", "epsilon": 0.2}, [], 0.3),
    "dapo": ({"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28, "delta": 10.0}, [], 2.0),
    "dr_grpo": (
        {"loss_type": "dr_grpo", "epsilon": 0.2, "scale_rewards": "none"},
        [f"stage.objective.aggregation.length={LONGEST}"],
        0.3,
    ),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
        [],
        1e-3,
    ),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 5.0}, [], 2.0),  # the cap itself: 1 + our 4
}
"""TRL's arguments, what our preset must be told, and how far log-ratios lie from 0, so that some are clipped."""


def noise(seed: int, scale: float) -> list[Tensor]:
    """For each answer's tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(length, generator=generator) for length in LENGTHS]


class Step(NamedTuple):
    """One step of TRL's trainer, generated and judged by itself: the batch that its loss takes."""

    trainer: Any
    inputs: dict[str, Tensor]

    @property
    def mask(self) -> Tensor:
        return self.inputs["completion_mask"].bool()

    def padded(self, values: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(values, batch_first=True)

    def loss(self) -> tuple[float, dict[str, Tensor], dict[str, float]]:
        """TRL's loss, gradient and figures."""
        self.trainer.model.zero_grad()
        loss = self.trainer.compute_loss(self.trainer.model, self.inputs)
        loss.backward()
        figures = {name: values[-1] for name, values in self.trainer._metrics["train"].items()}
        return float(loss.detach()), gradients(self.trainer.model), figures

    def ours(self, objective: PolicyObjective) -> tuple[float, dict[str, Tensor], dict[str, float]]:
        """The objective's, of the same model and tokens."""
        model, given = self.trainer.model, self.inputs
        model.zero_grad()
        ids = torch.cat([given["prompt_ids"], given["completion_ids"]], dim=1)
        seen = torch.cat([given["prompt_mask"], given["completion_mask"]], dim=1)
        hidden = model.model(input_ids=ids, attention_mask=seen, use_cache=False).last_hidden_state
        before = hidden[:, given["prompt_ids"].shape[1] - 1 : -1][self.mask]
        scored = objective.score(before, model.lm_head, given["completion_ids"][self.mask])
        answers = len(REWARDS)
        samples = torch.arange(answers)[:, None].expand_as(self.mask)[self.mask]
        groups = torch.arange(answers) // 4
        flat = {
            name: given[key][self.mask]
            for name, key in (("old_logprobs", "old_per_token_logps"), ("engine_logprobs", "sampling_per_token_logps"))
            if key in given
        }
        if "ref_per_token_logps" in given:
            flat["reference_logprobs"] = given["ref_per_token_logps"][self.mask]
        advantages = objective.advantages(torch.tensor(REWARDS), groups)
        torch.testing.assert_close(advantages, given["advantages"], rtol=1e-5, atol=1e-6)
        found: PolicySum = objective(scored, SampledTokens(samples, advantages, **flat))
        mean = found.total / objective.aggregation.denominator(len(samples), answers)
        mean.backward()
        return float(mean.detach()), gradients(model), found.diagnostics.metrics()


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small Qwen3 and the repository's tokenizer."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("weights")
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, initializer_range=0.3, tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


Begin = Callable[..., Step]


@pytest.fixture
def begin(weights: Path, tmp_path: Path) -> Begin:
    """A step of a trainer with these arguments; log-probabilities of the old policy, the reference and the engine are
    the model's own and noise of the given sizes.
    """

    def made(arguments: dict[str, Any], old: float = 0.0, reference: float = 0.0, engine: float | None = None) -> Step:
        generator = torch.Generator().manual_seed(1)
        answers = [torch.randint(20, 400, (length,), generator=generator).tolist() for length in LENGTHS]
        logprobs = [torch.zeros(length) for length in LENGTHS]

        def roll_out(prompts: list[str], trainer: Any) -> dict[str, Any]:
            ids = [PROMPTS[index // 4] for index in range(len(prompts))]
            return {"prompt_ids": ids, "completion_ids": answers, "logprobs": [one.tolist() for one in logprobs]}

        settings = trl.GRPOConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False,
            per_device_train_batch_size=12, num_generations=4, max_completion_length=LONGEST, temperature=TEMPERATURE,
            **arguments,
        )  # fmt: skip
        trainer = trl.GRPOTrainer(
            model=str(weights),
            reward_funcs=lambda completions, **_: REWARDS,
            args=settings,
            train_dataset=datasets.Dataset.from_dict({"prompt": ["one", "two", "three"]}),
            rollout_func=roll_out,
        )
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1  # its loop sets it
        rows = [{"prompt": prompt} for prompt in ("one", "two", "three") for _ in range(4)]
        step = Step(trainer, trainer._generate_and_score_completions(rows))
        now = own_logprobs(step)
        if engine is not None:
            logprobs[:] = [n + e for n, e in zip(now, noise(4, engine), strict=True)]
            trainer.use_vllm, trainer._last_loaded_step = True, 0  # its correction, without its server
            step = Step(trainer, trainer._generate_and_score_completions(rows))
        if old:
            moved = [n + e for n, e in zip(now, noise(2, old), strict=True)]
            step.inputs["old_per_token_logps"] = step.padded(moved)
        if reference:
            moved = [n + e for n, e in zip(now, noise(3, reference), strict=True)]
            step.inputs["ref_per_token_logps"] = step.padded(moved)
        return step

    return made


def own_logprobs(step: Step) -> list[Tensor]:
    """Of each answer's tokens, as TRL computes them."""
    given = step.inputs
    ids = torch.cat([given["prompt_ids"], given["completion_ids"]], dim=1)
    seen = torch.cat([given["prompt_mask"], given["completion_mask"]], dim=1)
    with torch.no_grad():
        found = step.trainer._get_per_token_logps_and_entropies(step.trainer.model, ids, seen, LONGEST)[0]
    return [row[:length] for row, length in zip(found, LENGTHS, strict=True)]


def agree(ours: tuple[float, dict[str, Tensor], Any], theirs: tuple[float, dict[str, Tensor], Any]) -> None:
    """Losses, and gradients by every parameter."""
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5, abs=1e-7)
    assert ours[1].keys() == theirs[1].keys()
    assert max(float(gradient.abs().max()) for gradient in theirs[1].values()) > 1e-3
    for name, gradient in theirs[1].items():
        error = float((ours[1][name] - gradient).norm() / gradient.norm().clamp(min=1e-6))
        assert error < 2e-5, (name, error)


def objective_of(name: str, **changes: Any) -> PolicyObjective:
    """Our preset, with TRL's epsilon of the deviation and no floor."""
    made = preset(
        name, "stage.objective.correction=null", f"stage.objective.temperature={TEMPERATURE}", *LOSSES[name][1]
    )
    if isinstance(made.advantages, GroupRelative):
        changes["advantages"] = GroupRelative(epsilon=1e-4, floor=0.0)
    return dataclasses.replace(made, **changes)


@pytest.mark.guarantee("Losses, advantages, divergence and correction equal TRL's on the same tensors")
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("name", LOSSES)
def test_a_later_update_is_trls(name: str, beta: float, begin: Begin) -> None:
    arguments, _, spread = LOSSES[name]
    # by default TRL multiplies the divergence by the ratio (DeepSeek-V3.2), which GRPO's paper does not
    arguments = arguments | {"beta": beta, "use_bias_correction_kl": False}
    step = begin(arguments, old=spread, reference=0.5 if beta else 0.0)
    ours, theirs = step.ours(objective_of(name, kl=KLPenalty(beta) if beta else None)), step.loss()
    agree(ours, theirs)
    metrics, figures = ours[2], theirs[2]
    assert metrics["entropy"] == pytest.approx(figures["entropy"], rel=1e-5)
    if beta:
        assert metrics["reference_kl"] == pytest.approx(figures["kl"], rel=1e-4)
    if name not in ("gspo", "cispo"):  # counted by answer there, and only of good tokens here
        assert metrics["clip_low_share"] == pytest.approx(figures["clip_ratio/low_mean"])
        assert metrics["clip_high_share"] == pytest.approx(figures["clip_ratio/high_mean"])
        assert metrics["clip_high_share"] > 0
    if name == "gspo":
        assert 0 < metrics["clip_low_share"] + metrics["clip_high_share"] < 1
    if name == "dapo":
        assert metrics["dual_clip_share"] > 0


@pytest.mark.guarantee("Losses, advantages, divergence and correction equal TRL's on the same tensors")
@pytest.mark.parametrize("name", LOSSES)
def test_the_first_update_is_trls(name: str, begin: Begin) -> None:
    step = begin(LOSSES[name][0])
    assert "old_per_token_logps" not in step.inputs
    agree(step.ours(objective_of(name, kl=None)), step.loss())


@pytest.mark.guarantee("Losses, advantages, divergence and correction equal TRL's on the same tensors")
@pytest.mark.parametrize(
    ("mode", "bounds", "correction"),
    [
        ("token_truncate", (None, 2.0), EngineCorrection("token", "clip", 2.0)),
        ("token_mask", (0.5, 5.0), EngineCorrection("token", "mask", 5.0, 0.5)),
        ("sequence_truncate", (0.2, 3.0), EngineCorrection("sequence", "clip", 3.0, 0.2)),
        ("sequence_mask", (0.2, 3.0), EngineCorrection("sequence", "mask", 3.0, 0.2)),
    ],
)
def test_the_engines_correction_is_trls(
    mode: str, bounds: tuple[float | None, float], correction: EngineCorrection, begin: Begin
) -> None:
    least, most = bounds
    arguments = LOSSES["dapo"][0] | {"vllm_importance_sampling_mode": mode}
    arguments |= {"vllm_importance_sampling_clip_min": least, "vllm_importance_sampling_clip_max": most}
    step = begin(arguments, engine=1.0)
    ours, theirs = step.ours(objective_of("dapo", correction=correction)), step.loss()
    agree(ours, theirs)
    assert 0 < ours[2]["engine_outside_share"] < 1
    difference = step.trainer._metrics["train"]["sampling/sampling_logp_difference/mean"][-1]
    assert ours[2]["engine_error"] == pytest.approx(difference, rel=1e-5)
