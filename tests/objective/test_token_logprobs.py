"""Scores of sampled tokens against torch's own distribution, in chunks, with banned tokens and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from framework.objective.token_logprobs import TokenScores, token_logprobs
from tests.objective.bits import packed

WIDTH, VOCABULARY, COUNT = 5, 11, 7


@pytest.fixture
def head() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=torch.float64)


def states(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(COUNT, WIDTH, generator=generator, dtype=torch.float64)).requires_grad_()


TAKEN = torch.tensor([0, 3, 10, 3, 5, 5, 1])


def gradients(scored: TokenScores, of: list[Tensor], entropy: float = 0.5) -> list[Tensor]:
    weights = torch.linspace(-1, 2, COUNT, dtype=torch.float64)
    total = (weights * (scored.logprobs + entropy * scored.entropies)).sum()
    return list(torch.autograd.grad(total, of))


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
def test_they_are_torchs_own_with_their_gradients(head: nn.Linear, chunk: int, temperature: float) -> None:
    hidden = states()
    found = token_logprobs(hidden, head, TAKEN, chunk, temperature)
    expected = Categorical(logits=head(hidden) / temperature)
    torch.testing.assert_close(found.logprobs, expected.log_prob(TAKEN))
    torch.testing.assert_close(found.entropies, expected.entropy())
    theirs = TokenScores(expected.log_prob(TAKEN), expected.entropy())
    of = [hidden, head.weight]
    for ours, other in zip(gradients(found, of), gradients(theirs, of), strict=True):
        torch.testing.assert_close(ours, other)


def test_two_tokens_by_hand() -> None:
    """Logits 0 and log 3: probabilities 1/4 and 3/4; at temperature 1/2, 1/10 and 9/10."""
    logits = torch.tensor([[1.0, 3.0]]).log()
    hot, cold = (token_logprobs(logits, nn.Identity(), torch.tensor([1]), 4, t) for t in (1.0, 0.5))
    assert hot.logprobs.exp().tolist() == pytest.approx([0.75])
    assert hot.entropies.tolist() == pytest.approx([0.5623351446])
    assert cold.logprobs.exp().tolist() == pytest.approx([0.9])


@pytest.mark.parametrize("chunk", [2, 7])
def test_banned_tokens_have_no_probability(head: nn.Linear, chunk: int) -> None:
    """As if the vocabulary had only the others."""
    kept = torch.tensor([0, 1, 3, 5, 10])
    banned = torch.ones(VOCABULARY, dtype=torch.bool)
    banned[kept] = False
    hidden = states()
    of = [hidden, head.weight]
    expected = Categorical(logits=head(hidden)[:, kept])
    theirs = TokenScores(expected.log_prob(torch.searchsorted(kept, TAKEN)), expected.entropy())
    found = token_logprobs(hidden, head, TAKEN, chunk, banned_mask=packed(banned.expand(COUNT, -1)))
    torch.testing.assert_close(found.logprobs, theirs.logprobs)
    torch.testing.assert_close(found.entropies, theirs.entropies)
    for ours, other in zip(gradients(found, of), gradients(theirs, of), strict=True):
        torch.testing.assert_close(ours, other)


def test_each_token_has_its_own_bans(head: nn.Linear) -> None:
    banned = torch.zeros(COUNT, VOCABULARY, dtype=torch.bool)
    banned[2, :10] = True  # nothing else can be taken there
    found = token_logprobs(states(), head, TAKEN, 2, banned_mask=packed(banned))
    assert found.logprobs[2] == 0.0
    assert found.entropies[2] == 0.0
    torch.testing.assert_close(found.logprobs[3:], token_logprobs(states(), head, TAKEN, 7).logprobs[3:])


@pytest.mark.parametrize("scale", [1.0, 2.0, 1e6])
def test_however_gradients_are_scaled_bans_leave_them_exact(scale: float) -> None:
    """Against the definition in float64, in which what is banned is not there at all."""
    torch.manual_seed(1)
    logits = torch.randn(COUNT, VOCABULARY, requires_grad=True)
    banned = torch.zeros(VOCABULARY, dtype=torch.bool)
    banned[[2, 4, 9]] = True
    found = token_logprobs(logits, nn.Identity(), TAKEN, 3, banned_mask=packed(banned.expand(COUNT, -1)))
    exact = logits.detach().double().requires_grad_()
    kept = exact[:, ~banned].log_softmax(dim=-1)
    entropies = -(kept.exp() * kept).sum(dim=-1)
    (ours,) = torch.autograd.grad(scale * found.entropies.sum(), logits)
    (theirs,) = torch.autograd.grad(scale * entropies.sum(), exact)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6 * scale)
    assert not ours[:, banned].any()


def test_entropies_that_are_only_looked_at(head: nn.Linear) -> None:
    hidden = states()
    found = token_logprobs(hidden, head, TAKEN, 3, entropy_gradient=False)
    assert not found.entropies.requires_grad
    torch.testing.assert_close(found.entropies, Categorical(logits=head(hidden)).entropy())
    with_them = token_logprobs(hidden, head, TAKEN, 3)
    of = [hidden, head.weight]
    ours, theirs = gradients(found, of, entropy=0.0), gradients(with_them, of, entropy=0.0)
    torch.testing.assert_close(ours, theirs)


def test_all_logits_never_exist_at_once(head: nn.Linear) -> None:
    sizes = []

    def watched(part: Tensor) -> Tensor:
        sizes.append(len(part))
        return head(part)

    scored = token_logprobs(states(), watched, TAKEN, 3)
    assert sizes == [3, 3, 1]
    gradients(scored, [head.weight])
    assert sorted(sizes[3:]) == [3, 3]  # computed again; the last was kept


def test_without_gradient_nothing_is_recorded(head: nn.Linear) -> None:
    with torch.no_grad():
        found = token_logprobs(states(), head, TAKEN, 3)
    assert not found.logprobs.requires_grad


@pytest.mark.parametrize(("given", "expected"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_half_precision_logits_are_scored_in_single_precision(given: torch.dtype, expected: torch.dtype) -> None:
    logits = torch.zeros(2, 3, dtype=given)
    found = token_logprobs(logits, nn.Identity(), torch.tensor([0, 2]), 8)
    assert {found.logprobs.dtype, found.entropies.dtype} == {expected}
    assert found.logprobs.exp().tolist() == pytest.approx([1 / 3, 1 / 3])


def test_logits_far_apart_stay_finite() -> None:
    logits = torch.tensor([[0.0, 3e4], [-3e38, 3e38]], requires_grad=True)
    found = token_logprobs(logits, nn.Identity(), torch.tensor([0, 1]), 8)
    (found.logprobs + found.entropies).sum().backward()
    assert found.logprobs.tolist() == [-3e4, 0.0]
    assert found.entropies.tolist() == [0.0, 0.0]
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_no_tokens_have_no_scores(head: nn.Linear) -> None:
    found = token_logprobs(torch.zeros(0, WIDTH, dtype=torch.float64), head, torch.zeros(0).long(), 4)
    assert found.logprobs.shape == found.entropies.shape == (0,)
    found.logprobs.sum().backward()  # reaches the head: a rank without answers takes part in the reduction
    assert head.weight.grad is not None
    assert not head.weight.grad.any()
