"""The supervised loss against torch's own mean over the same tokens."""

from __future__ import annotations

import pytest
import torch

from framework.objective.normalisation import loss_scale
from framework.objective.supervised import CrossEntropy, next_token_positions, supervised_tokens
from framework.scene.batch import IGNORE_INDEX


def _batch(seed: int = 0) -> tuple[torch.Tensor, torch.nn.Linear, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(3, 7, 5, generator=generator, dtype=torch.float64).float()
    head = torch.nn.Linear(5, 11, bias=False)
    labels = torch.randint(0, 11, (3, 7), generator=generator)
    labels[0, :5] = IGNORE_INDEX
    labels[2, 1:] = IGNORE_INDEX
    return hidden, head, labels


def test_equals_the_masked_mean_of_all_logits() -> None:
    hidden, head, labels = _batch()
    mask, targets = next_token_positions(labels)
    loss = CrossEntropy(chunk=2)(hidden[mask], head, targets)
    expected = torch.nn.functional.cross_entropy(
        head(hidden)[:, :-1].reshape(-1, 11), labels[:, 1:].reshape(-1), ignore_index=IGNORE_INDEX
    )
    torch.testing.assert_close(loss.total / loss.tokens, expected)
    assert loss.tokens == supervised_tokens(labels) == int((labels[:, 1:] != IGNORE_INDEX).sum())


def test_the_first_token_of_a_row_predicts_nothing() -> None:
    labels = torch.tensor([[3, IGNORE_INDEX, IGNORE_INDEX]])
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


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [3, 4, 12, 100])
def test_chunks_change_neither_value_nor_gradient(chunk: int, smoothing: float) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(5, 11)
    hidden, targets = torch.randn(12, 5, requires_grad=True), torch.randint(0, 11, (12,))
    given = (hidden, *head.parameters())
    loss = CrossEntropy(chunk, smoothing)(hidden, head, targets)
    expected = torch.nn.functional.cross_entropy(head(hidden), targets, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(loss.total, expected)
    assert loss.correct == (head(hidden).argmax(-1) == targets).sum()
    for ours, theirs in zip(torch.autograd.grad(loss.total, given), torch.autograd.grad(expected, given), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_logits_of_one_chunk_alone_are_kept_for_the_backward_pass() -> None:
    head, kept = torch.nn.Linear(8, 1000, bias=False), dict[int, int]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    hidden, targets = torch.randn(64, 8, requires_grad=True), torch.randint(0, 1000, (64,))
    known = sum(tensor.nbytes for tensor in (hidden, targets, head.weight))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = CrossEntropy(chunk=16)(hidden, head, targets)
    of_chunk = 16 * 1000 * 4
    assert of_chunk <= sum(kept.values()) - known < 1.1 * of_chunk
    loss.total.backward()
    assert head.weight.grad is not None


def test_no_positions_have_no_loss_and_a_gradient_of_zero() -> None:
    head, hidden = torch.nn.Linear(4, 6), torch.randn(0, 4, requires_grad=True)
    loss = CrossEntropy()(hidden, head, torch.empty(0, dtype=torch.int64))
    loss.total.backward()
    assert loss.total == 0.0
    assert loss.correct == loss.tokens == 0
    assert head.weight.grad is not None
    assert not head.weight.grad.any()


def test_a_step_without_supervised_tokens_says_so() -> None:
    with pytest.raises(ValueError, match="no supervised tokens"):
        loss_scale(0, 1)


@pytest.mark.parametrize(("chunk", "smoothing"), [(0, 0.0), (1, 1.0)])
def test_bad_arguments_are_named(chunk: int, smoothing: float) -> None:
    with pytest.raises(ValueError, match="objective"):
        CrossEntropy(chunk=chunk, label_smoothing=smoothing)
