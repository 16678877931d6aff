"""The supervised loss against torch's own mean over the same tokens."""

from __future__ import annotations

import pytest
import torch

from framework.objective.normalisation import loss_scale
from framework.objective.supervised import IGNORED, CrossEntropy, next_token_positions, supervised_tokens


def _batch(seed: int = 0) -> tuple[torch.Tensor, torch.nn.Linear, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(3, 7, 5, generator=generator, dtype=torch.float64).float()
    head = torch.nn.Linear(5, 11, bias=False)
    labels = torch.randint(0, 11, (3, 7), generator=generator)
    labels[0, :5] = IGNORED
    labels[2, 1:] = IGNORED
    return hidden, head, labels


def test_equals_the_masked_mean_of_all_logits() -> None:
    hidden, head, labels = _batch()
    mask, targets = next_token_positions(labels)
    loss = CrossEntropy(chunk=2)(hidden[mask], head, targets)
    expected = torch.nn.functional.cross_entropy(
        head(hidden)[:, :-1].reshape(-1, 11), labels[:, 1:].reshape(-1), ignore_index=IGNORED
    )
    torch.testing.assert_close(loss.total / loss.tokens, expected)
    assert loss.tokens == supervised_tokens(labels) == int((labels[:, 1:] != IGNORED).sum())


def test_the_first_token_of_a_row_predicts_nothing() -> None:
    labels = torch.tensor([[3, IGNORED, IGNORED]])
    assert supervised_tokens(labels) == 0
    assert not next_token_positions(labels)[0].any()


def test_gradient_is_the_same_however_a_step_is_split() -> None:
    hidden, head, labels = _batch(1)
    loss_of = CrossEntropy()
    gradients = []
    for splits in ([[0, 1, 2]], [[0], [1, 2]], [[0], [1], [2]]):
        head.zero_grad()
        for rows in splits:
            mask, targets = next_token_positions(labels[rows])
            (loss_of(hidden[rows][mask], head, targets).total * loss_scale(supervised_tokens(labels), 1)).backward()
        assert head.weight.grad is not None
        gradients.append(head.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], gradients[2])


def test_a_step_without_supervised_tokens_says_so() -> None:
    with pytest.raises(ValueError, match="no supervised tokens"):
        loss_scale(0, 1)


@pytest.mark.parametrize(("chunk", "smoothing"), [(0, 0.0), (1, 1.0)])
def test_bad_arguments_are_named(chunk: int, smoothing: float) -> None:
    with pytest.raises(ValueError, match="objective"):
        CrossEntropy(chunk=chunk, label_smoothing=smoothing)
