"""An action head by flow matching: a small transformer turns noise into controls, looking at the prompt's states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple, cast

import torch
from annotated_types import Interval, MinLen
from torch import Tensor, nn
from torch.nn import functional as F

from framework.model.flow_matching import (
    Transition,
    entropy,
    euler_step,
    interpolate,
    log_density,
    stochastic_step,
    velocity,
)
from framework.model.segments import Segments, attend
from framework.recipe.component import component
from framework.recipe.ranges import Acceleration, Curvature, Rate, Steps, Weight, Width
from framework.scene.types import HORIZON_STEPS, RATE_HZ

LONGEST_PERIOD, SHORTEST_PERIOD = 4.0, 4e-3
"""Periods of the features of time, as in pi0's code."""
Layers = Annotated[int, Interval(ge=1, le=256)]


@dataclass(frozen=True)
class Prompts:
    """Where the prompts of a micro-batch are, that plans are asked for. Nothing of their answers belongs to them."""

    places: Tensor
    """`(k,)` int64: flat indices of the prompts' tokens into the rows, prompt by prompt."""
    segments: Segments
    """The steps of a prompt's plans as queries, its tokens as keys."""

    @classmethod
    def of(cls, places: Sequence[Tensor], steps: int, plans: Sequence[int] | None = None) -> Prompts:
        """Prompts with the flat indices `places` of their tokens, for plans of `steps` steps: one for each prompt, or
        as many as `plans` says, prompt by prompt.
        """
        queries = [steps] * len(places) if plans is None else [steps * count for count in plans]
        keys = [len(each) for each in places]
        bounds, key_bounds = (
            F.pad(torch.tensor(each, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0))
            for each in (queries, keys)
        )
        segments = Segments(tuple(queries), bounds, tuple(keys), key_bounds, None, max(queries), max(keys))
        return cls(torch.cat(list(places)), segments)

    def to(self, device: torch.device) -> Prompts:
        """The same on `device`."""
        of = self.segments
        moved = replace(of, bounds=of.bounds.to(device), key_bounds=of.key_bounds.to(device))
        return Prompts(self.places.to(device), moved)


class Memory(NamedTuple):
    """What plans see of their prompts, the same at all times of the flow."""

    layers: list[tuple[Tensor, Tensor]]
    """Keys and values of each layer, `(1, heads, k, width)`."""
    segments: Segments
    """Which of them belong to which plan."""


class Paths(NamedTuple):
    """`n` plans as the stochastic flow drew them."""

    states: Tensor
    """From noise to actions, `(n, flow_steps + 1, steps, 2)`."""
    logprobs: Tensor
    """Log-density of each step, `(n, flow_steps)`."""


@component
class FlowHead(nn.Module):
    """Plans controls by flow matching, from the language model's last states of the prompt (an *action expert*: pi0,
    arXiv 2410.24164; Alpamayo-R1, arXiv 2511.00088).

    Controls are pairs of acceleration and curvature (see `framework.scene.kinematics`), divided by their scales. Every
    layer attends among the plan's steps and to the prompt's tokens. The answer's tokens are not seen: they are the
    text of the plan that is to be learned.

    Args:
        hidden: Width of the language model's states.
        width: Width of the head, a multiple of twice `heads`.
        layers: Number of layers.
        heads: Attention heads.
        steps: Steps of a plan.
        rate_hz: Steps per second.
        acceleration_scale: Acceleration (m/s^2) that is 1 for the head, near the standard deviation in the data.
        curvature_scale: The same of curvature (1/m).
        acceleration_limit: Largest acceleration of a plan either way, in m/s^2.
        curvature_limit: Largest curvature of a plan either way, in 1/m.
        flow_steps: Steps from noise to a plan.
        sample_noise: Level of the noise that is added in these steps to further plans of a scene, see
            `framework.model.flow_matching.stochastic_step`; few deterministic steps make them too much alike. 0 for
            none. Reinforcement learning needs it: without noise the plans have no density.
        detach: Whether the backbone learns nothing from the head (knowledge insulation: arXiv 2505.23705).
        loss_weight: Weight of the head's loss next to that of the answers' tokens.
        lr_factor: Factor of the learning rate, unless the stage's `lr_factors` match the head.
        tasks: Names of the data's tasks whose plans the head learns and makes; other plans are answered in tokens.

    Raises `ValueError` for a width that does not divide.
    """

    def __init__(
        self,
        hidden: Width,
        width: Width = 256,
        layers: Layers = 3,
        heads: Layers = 4,
        steps: Steps = HORIZON_STEPS,
        rate_hz: Rate = RATE_HZ,
        acceleration_scale: Acceleration = 1.0,
        curvature_scale: Curvature = 0.02,
        acceleration_limit: Acceleration = 8.0,
        curvature_limit: Curvature = 0.2,
        flow_steps: Annotated[int, Interval(ge=1, le=1000)] = 5,
        sample_noise: Annotated[float, Interval(ge=0, le=2)] = 0.0,
        detach: bool = False,
        loss_weight: Weight = 1.0,
        lr_factor: Weight = 1.0,
        tasks: Annotated[Sequence[str], MinLen(1)] = ("drive",),
    ) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"model.action_head.width: {width} is no multiple of twice {heads} heads")
        if sample_noise and flow_steps < 2:
            raise ValueError(
                "model.action_head.sample_noise: a single step adds none; raise flow_steps, or set it to 0"
            )
        self.steps, self.rate_hz, self.flow_steps, self.sample_noise = steps, rate_hz, flow_steps, sample_noise
        self.scales = (acceleration_scale, curvature_scale)
        self.limits = (acceleration_limit, curvature_limit)
        self.detach, self.loss_weight, self.lr_factor, self.tasks = detach, loss_weight, lr_factor, tuple(tasks)
        self.controls = nn.Linear(2, width)
        self.places = nn.Embedding(steps, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.context_norm = nn.LayerNorm(hidden)
        self.layers = nn.ModuleList(Layer(hidden, width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def memory(self, states: Tensor, segments: Segments) -> Memory:
        """What plans see of the prompts' `states` `(k, hidden)`."""
        states = states.detach() if self.detach else states
        context = self.context_norm(states.to(self.context_norm.weight.dtype))
        return Memory([cast(Layer, layer).memory(context) for layer in self.layers], segments)

    def forward(self, noisy: Tensor, times: Tensor, memory: Memory) -> Tensor:
        """The velocity `(n, steps, 2)` at scaled controls `noisy` `(n, steps, 2)` and `times` `(n,)`."""
        weight = self.controls.weight
        time = self.time(time_features(times, weight.shape[0]).to(weight.dtype))
        x = self.controls(noisy.to(weight.dtype)) + self.places.weight + time[:, None]
        for layer, (keys, values) in zip(self.layers, memory.layers, strict=True):
            x = layer(x, keys, values, memory.segments)
        return self.out(self.norm(x)).to(noisy.dtype)

    def actions(self, controls: Tensor) -> Tensor:
        """Controls `(..., 2)` in m/s^2 and 1/m, divided by their scales."""
        return controls / controls.new_tensor(self.scales)

    def loss(self, memory: Memory, actions: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The squared error of the velocity, its mean over steps and both controls, of each plan: `(n,)`.

        Args:
            memory: The prompts'.
            actions: What is to be planned, `(n, steps, 2)`, see `actions`.
            noise: Standard normal numbers of the same shape.
            times: Times of the flow, `(n,)`.
        """
        error = self(interpolate(actions, noise, times), times, memory) - velocity(actions, noise)
        return error.square().mean(dim=(1, 2))

    def sample(self, memory: Memory, noise: Tensor, added: Tensor | None = None) -> Tensor:
        """Controls `(n, steps, 2)` in m/s^2 and 1/m, in `flow_steps` steps from `noise` of the same shape.

        With `added`, standard normal numbers `(flow_steps, n, steps, 2)`, the steps are stochastic at the level
        `sample_noise`; else they are Euler's.
        """
        if added is not None:
            return self.driven(self.draw(memory, noise, added).states[:, -1])
        x, step = noise, 1.0 / self.flow_steps
        for time in self._times():
            x = euler_step(x, self(x, x.new_full((len(x),), time), memory), step)
        return self.driven(x)

    def driven(self, actions: Tensor) -> Tensor:
        """The controls in m/s^2 and 1/m of `actions` `(..., 2)`, within the limits."""
        limits = actions.new_tensor(self.limits)
        return (actions * actions.new_tensor(self.scales)).clamp(-limits, limits)

    def draw(self, memory: Memory, noise: Tensor, added: Tensor) -> Paths:
        """Draws the stochastic flow from `noise` `(n, steps, 2)`; each of the `flow_steps` steps adds its own of the
        standard normal numbers `added` `(flow_steps, n, steps, 2)`.
        """
        states, logprobs = [noise], []
        for time, own in zip(self._times(), added, strict=True):
            x = states[-1]
            step = self._transition(x, self(x, x.new_full((len(x),), time), memory), time)
            states.append(step.mean + step.deviation * own)
            logprobs.append(log_density(states[-1], step))
        return Paths(torch.stack(states, dim=1), torch.stack(logprobs, dim=1))

    def path_logprobs(self, memory: Memory, states: Tensor) -> Tensor:
        """The log-density `(n, flow_steps)` of each step of paths that were drawn, summed over its `2 * steps`
        dimensions (Flow-GRPO: arXiv 2505.05470, equation 8).

        Args:
            memory: The prompts', for `flow_steps` times as many plans as a prompt has paths (see `Prompts.of`).
            states: The paths' states `(n, flow_steps + 1, steps, 2)`, see `Paths`.
        """
        times = self._times()
        every = states.new_tensor(times).repeat(len(states))
        v = self(states[:, :-1].flatten(0, 1), every, memory).unflatten(0, (-1, len(times)))
        steps = [self._transition(states[:, k], v[:, k], time) for k, time in enumerate(times)]
        return torch.stack([log_density(states[:, k + 1], step) for k, step in enumerate(steps)], dim=1)

    def path_entropies(self) -> list[float]:
        """The differential entropy in nats of each of the `flow_steps` steps: the noise's, whatever the weights."""
        nothing = torch.zeros(())
        deviations = [self._transition(nothing, nothing, time).deviation for time in self._times()]
        return [entropy(2 * self.steps, deviation) for deviation in deviations]

    def _times(self) -> list[float]:
        return [1.0 - number / self.flow_steps for number in range(self.flow_steps)]

    def _transition(self, x: Tensor, v: Tensor, time: float) -> Transition:
        return stochastic_step(x, v, time, 1.0 / self.flow_steps, self.sample_noise)


class Layer(nn.Module):
    """Attention among the steps of a plan, attention to its prompt, and an MLP, each added to its input.

    Args:
        hidden: Width of the prompt's states.
        width: Width of the layer.
        heads: Attention heads.
    """

    def __init__(self, hidden: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.steps, self.steps_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.query, self.prompt, self.prompt_out = (
            nn.Linear(width, width), nn.Linear(hidden, 2 * width), nn.Linear(width, width),
        )  # fmt: skip
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def memory(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `(1, heads, k, width)` of the prompts' states `(k, hidden)`."""
        keys, values = self.prompt(context)[None].chunk(2, dim=-1)
        return self._heads(keys), self._heads(values)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, segments: Segments) -> Tensor:
        """Map `(n, steps, width)` to the same shape."""
        queries, own_keys, own_values = map(self._heads, self.steps(self.norms[0](x)).chunk(3, dim=-1))
        among = F.scaled_dot_product_attention(queries, own_keys, own_values)
        x = x + self.steps_out(among.transpose(1, 2).flatten(2))
        row = self._heads(self.query(self.norms[1](x)).flatten(0, 1)[None])
        seen, _ = attend(self, row, keys, values, None, is_causal=False, segments=segments)
        x = x + self.prompt_out(seen.flatten(2).view(x.shape).to(x.dtype))
        return x + self.mlp(self.norms[2](x))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def time_features(times: Tensor, width: int) -> Tensor:
    """Sines and cosines `(n, width)` of `times` `(n,)`, with periods from `LONGEST_PERIOD` to `SHORTEST_PERIOD`."""
    exponents = torch.linspace(0, 1, width // 2, dtype=times.dtype, device=times.device)
    periods = LONGEST_PERIOD * (SHORTEST_PERIOD / LONGEST_PERIOD) ** exponents
    angles = 2 * math.pi * times[:, None] / periods
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
