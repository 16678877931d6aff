"""The action head's loss against a plain one, its gradients against finite differences, and what its flow samples."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import cast

import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.nn import functional as F

from framework.model.flow_head import FlowHead, Layer, Memory, Paths, Prompts, time_features
from framework.model.flow_matching import stochastic_step, training_times
from framework.model.plan import draw_plans, middle_plans, plan
from framework.scene.world.generate import generate_scene
from tests.model.conftest import EVERYTHING, NOTHING, build, make_batch

HIDDEN, STEPS, LENGTHS = 12, 3, (5, 1, 7)


def head_of(seed: int = 0, **arguments: float) -> FlowHead:
    """A small head in float64, all of whose parameters count."""
    torch.manual_seed(seed)
    head = FlowHead(hidden=HIDDEN, width=16, layers=2, heads=2, steps=STEPS, **arguments).double()  # type: ignore[arg-type]
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head


def prompts() -> Prompts:
    """Three prompts of `LENGTHS`, one after another."""
    return Prompts.of(list(torch.arange(sum(LENGTHS)).split(LENGTHS)), STEPS)


def numbers() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States, actions, noise and times."""
    torch.manual_seed(1)
    make = functools.partial(torch.randn, dtype=torch.float64)
    times = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    return make(sum(LENGTHS), HIDDEN), make(3, STEPS, 2), make(3, STEPS, 2), times


def plain_attention(head: FlowHead, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Of one plan, head by head."""
    width = queries.shape[-1] // 2
    parts = []
    for of in (slice(0, width), slice(width, None)):
        scores = queries[:, of] @ keys[:, of].T / math.sqrt(width)
        parts.append(scores.softmax(-1) @ values[:, of])
    return torch.cat(parts, dim=-1)


def plain_loss(head: FlowHead, states: Tensor, action: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """The loss of one plan, written out: nothing of the head but its parameters."""
    x_t = (1 - time) * action + time * noise
    angles = [2 * math.pi * time / (4.0 * 1e-3 ** (k / 7)) for k in range(8)]
    features = torch.stack([*map(torch.sin, angles), *map(torch.cos, angles)])
    x = head.controls(x_t) + head.places.weight + head.time(features)
    context = F.layer_norm(states, (HIDDEN,), head.context_norm.weight, head.context_norm.bias)
    for layer in cast("Iterable[Layer]", head.layers):
        own = layer.steps(layer.norms[0](x))
        x = x + layer.steps_out(plain_attention(head, own[:, :16], own[:, 16:32], own[:, 32:]))
        seen = layer.prompt(context)
        x = x + layer.prompt_out(plain_attention(head, layer.query(layer.norms[1](x)), seen[:, :16], seen[:, 16:]))
        x = x + layer.mlp(layer.norms[2](x))
    return ((head.out(head.norm(x)) - (noise - action)) ** 2).mean()


def test_losses_and_gradients_are_those_of_plans_one_by_one() -> None:
    head, (states, actions, noise, times) = head_of(), numbers()
    losses = head.loss(head.memory(states, prompts().segments), actions, noise, times)
    plain = [plain_loss(head, own, actions[n], noise[n], times[n]) for n, own in enumerate(states.split(LENGTHS))]
    torch.testing.assert_close(losses, torch.stack(plain))
    ours, theirs = (torch.autograd.grad(sum(each), list(head.parameters())) for each in (losses, plain))  # type: ignore[arg-type]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_are_those_of_finite_differences() -> None:
    head, (states, actions, noise, times) = head_of(), numbers()
    segments, layer = prompts().segments, cast(Layer, head.layers[1])

    def loss(states: Tensor, query: Tensor, controls_weight: Tensor) -> Tensor:
        parameters = {"layers.1.query.weight": query, "controls.weight": controls_weight}
        own = (head.memory(states, segments), actions, noise, times)
        return torch.func.functional_call(Loss(head), {f"head.{k}": v for k, v in parameters.items()}, own).sum()

    given = [states, layer.query.weight.detach(), head.controls.weight.detach()]
    assert torch.autograd.gradcheck(loss, [each.clone().requires_grad_() for each in given], fast_mode=True)


class Loss(torch.nn.Module):
    """The head's loss as a forward pass."""

    def __init__(self, head: FlowHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, memory: Memory, actions: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        return self.head.loss(memory, actions, noise, times)


def test_detached_states_have_no_gradient() -> None:
    for detach in (False, True):
        head, (states, actions, noise, times) = head_of(detach=detach), numbers()
        states.requires_grad_()
        head.loss(head.memory(states, prompts().segments), actions, noise, times).sum().backward()
        assert (states.grad is None) == detach


def test_actions_are_controls_by_their_scales() -> None:
    actions = head_of(acceleration_scale=2.0, curvature_scale=0.1).actions(torch.tensor([[3.0, 0.2]]))
    torch.testing.assert_close(actions, torch.tensor([[1.5, 2.0]]))


def test_times_of_training_weigh_the_noisy_end() -> None:
    times = training_times(torch.linspace(0, 1, 100_001, dtype=torch.float64))
    assert float(times.min()) == pytest.approx(1e-3)
    assert float(times.max()) == pytest.approx(1.0)
    assert float(times.mean()) == pytest.approx(0.001 + 0.999 * 1.5 / 2.5, abs=1e-4)  # Beta(1.5, 1)
    assert time_features(times[:4], 6).shape == (4, 6)


class Exact(FlowHead):
    """Knows the velocity of actions from N(mean, deviation^2)."""

    mean, deviation = 0.5, 1.0

    def forward(self, noisy: Tensor, times: Tensor, memory: Memory) -> Tensor:
        t, variance = times[:, None, None], self.deviation**2
        slope = (t - (1 - t) * variance) / ((1 - t) ** 2 * variance + t**2)
        return slope * (noisy - (1 - t) * self.mean) - self.mean


@pytest.mark.parametrize(
    ("deviation", "steps", "level", "expected"),
    [
        (1.0, 4, 0.0, 0.72),
        (1.0, 4, 0.7, 0.89),
        (0.1, 4, 0.0, 0.03),
        (0.1, 4, 0.2, 0.06),
        (0.1, 4, 0.5, 0.15),
        (0.1, 4, 0.7, 0.22),
        (0.1, 10, 0.0, 0.06),
        (0.1, 10, 0.7, 0.09),
    ],
)
def test_few_steps_are_too_sure_and_noise_in_them_widens(
    deviation: float, steps: int, level: float, expected: float
) -> None:
    """With the exact velocity of a Gaussian."""
    head = Exact(hidden=HIDDEN, steps=STEPS, flow_steps=steps, sample_noise=level, acceleration_limit=99.0)
    head.scales, head.limits, head.deviation = (1.0, 1.0), (99.0, 99.0), deviation
    noise = torch.randn(1 + steps, 10_000, STEPS, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = head.sample(Memory([], prompts().segments), noise[0], noise[1:] if level else None)
    assert float(made.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(made.std()) == pytest.approx(expected, abs=0.006)


def test_a_stochastic_step_is_that_of_the_paper() -> None:
    mean, deviation = stochastic_step(torch.tensor([0.3]), torch.tensor([-0.5]), 0.5, 0.25, 0.7)
    assert deviation == pytest.approx(0.7 * 0.5)
    assert mean.item() == pytest.approx(0.3 - 0.25 * (-0.5 + 0.49 * (0.3 - 0.25)))  # s = 0.7, t = 1/2
    first = stochastic_step(torch.tensor([0.3]), torch.tensor([-0.5]), 1.0, 0.25, 0.7)
    assert first.deviation == pytest.approx(0.7 * math.sqrt(1 / 0.25) * 0.5)
    with pytest.raises(ValueError, match="above 0"):
        stochastic_step(torch.zeros(1), torch.zeros(1), 0.5, 0.25, 0.0)


def test_plans_are_driven_from_the_prompts_and_repeat() -> None:
    model = build()
    model.action_head = FlowHead(hidden=model.backbone.config.text_config.hidden_size, width=32, layers=1, heads=2)
    torch.nn.init.normal_(model.action_head.out.weight, std=0.2)
    prompts = make_batch(model, [EVERYTHING, NOTHING])
    prompts["scenes"] = [generate_scene(0), generate_scene(1)]
    plans = plan(model, prompts, samples=2)
    assert [len(each) for each in plans] == [3, 3]
    for own, repeated in zip(plans, plan(model, prompts, samples=2), strict=True):
        for one, other in zip(own, repeated, strict=True):
            assert one.states.shape == (20, 4)
            assert (one.states == other.states).all()
    alone = make_batch(model, [NOTHING])
    alone["scenes"] = prompts["scenes"][1:]
    for one, other in zip(plans[1], plan(model, alone, samples=2)[0], strict=True):
        torch.testing.assert_close(torch.from_numpy(one.states), torch.from_numpy(other.states), atol=1e-3, rtol=1e-3)
    first, second = plans[0][1:]
    assert abs(first.states - second.states).max() > 0.1, "each has noise of its own"
    torch.nn.init.constant_(model.action_head.out.bias, float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        plan(model, prompts)


def paths_of(head: FlowHead, copies: int) -> tuple[Memory, Paths]:
    """`copies` paths to each of the three prompts, and what scoring them sees."""
    states = numbers()[0]
    noise = torch.randn(1 + head.flow_steps, 3 * copies, STEPS, 2, dtype=torch.float64)
    places = list(torch.arange(sum(LENGTHS)).split(LENGTHS))
    drawn = head.draw(head.memory(states, Prompts.of(places, STEPS, [copies] * 3).segments), noise[0], noise[1:])
    return head.memory(states, Prompts.of(places, STEPS, [copies * head.flow_steps] * 3).segments), drawn


def test_log_densities_are_those_of_scipy() -> None:
    """Of every step, from the paper's mean and deviation, written out with numpy's numbers."""
    head = head_of(sample_noise=0.7, flow_steps=4)
    _, drawn = paths_of(head, copies=2)
    places = list(torch.arange(sum(LENGTHS)).split(LENGTHS))
    memory = head.memory(numbers()[0], Prompts.of(places, STEPS, [2] * 3).segments)
    for k, t in enumerate((1.0, 0.75, 0.5, 0.25)):
        x, later = (drawn.states[:, k + i].detach().numpy() for i in (0, 1))
        v = head(drawn.states[:, k], torch.full((6,), t, dtype=torch.float64), memory).detach().numpy()
        s = 0.7 * math.sqrt(t / (1 - min(t, 0.75)))
        mean = x - 0.25 * (v + s**2 / (2 * t) * (x + (1 - t) * v))
        expected = scipy.stats.norm(mean, s * math.sqrt(0.25)).logpdf(later).sum(axis=(1, 2))
        assert drawn.logprobs[:, k].tolist() == pytest.approx(expected.tolist())
        entropy = 2 * STEPS * scipy.stats.norm(0, s * math.sqrt(0.25)).entropy()
        assert head.path_entropies()[k] == pytest.approx(float(entropy))


def test_paths_are_scored_as_they_were_drawn() -> None:
    """With unchanged weights every ratio is 1, however many paths share a prompt."""
    head = head_of(sample_noise=0.5, flow_steps=3)
    memory, drawn = paths_of(head, copies=4)
    torch.testing.assert_close(head.path_logprobs(memory, drawn.states), drawn.logprobs)


def test_gradients_of_log_densities_are_those_of_finite_differences() -> None:
    head = head_of(sample_noise=0.5, flow_steps=3)
    drawn = paths_of(head, copies=2)[1].states.detach()
    places = list(torch.arange(sum(LENGTHS)).split(LENGTHS))
    segments, layer = Prompts.of(places, STEPS, [6] * 3).segments, cast(Layer, head.layers[0])

    class Scored(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = head

        def forward(self, states: Tensor) -> Tensor:
            return self.head.path_logprobs(self.head.memory(states, segments), drawn)

    def logprobs(states: Tensor, query: Tensor, out: Tensor) -> Tensor:
        parameters = {"head.layers.0.query.weight": query, "head.out.weight": out}
        return torch.func.functional_call(Scored(), parameters, (states,))

    given = [numbers()[0], layer.query.weight.detach(), head.out.weight.detach()]
    assert torch.autograd.gradcheck(logprobs, [each.clone().requires_grad_() for each in given], fast_mode=True)


def test_drawn_plans_follow_from_their_seeds_and_prompts_alone() -> None:
    model = build()
    hidden = model.backbone.config.text_config.hidden_size
    model.action_head = FlowHead(hidden=hidden, width=32, layers=1, heads=2, sample_noise=0.5)
    torch.nn.init.normal_(model.action_head.out.weight, std=0.2)
    prompts, alone = make_batch(model, [EVERYTHING, NOTHING]), make_batch(model, [NOTHING])
    drawn = draw_plans(model, prompts, [(1, 2), (3, 4)])
    again = draw_plans(model, alone, [(4, 3)])
    for one, other in zip(drawn[:1:-1], again, strict=True):
        torch.testing.assert_close(torch.tensor(one.states), torch.tensor(other.states), atol=1e-3, rtol=1e-3)
    assert abs(drawn[2].controls - drawn[3].controls).max() > 0.05
    assert (drawn[0].controls[:, 0] == drawn[0].states[-1, :, 0].clip(-8, 8)).all(), "accelerations have the scale 1"
    middle = middle_plans(model, alone)[0].controls
    assert (middle == middle_plans(model, alone)[0].controls).all()
