"""One optimizer step has one gradient: that of the mean over its supervised tokens, however the step is cut up."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler
from torch import Tensor
from torch.nn import functional as F

from framework.data.render.collate import collate, without_labels
from framework.data.render.sample import Sample
from framework.data.stream.batcher import MicroBatcher
from framework.model.flow_head import FlowHead
from framework.model.language_action import LanguageActionModel
from framework.objective.supervised import CrossEntropy, LossSum, next_token_positions
from framework.recipe.catalogue import Catalogue
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.scene.batch import MicroBatch
from framework.scene.world.generate import generate_scene
from framework.tracking.profile import Profile
from framework.tracking.step_logger import StepLogger
from framework.tracking.step_meter import StepMeter
from framework.tracking.throughput import Throughput
from framework.training.sft.module import SupervisedModule
from framework.training.sft.plan_targets import plan_targets
from framework.training.stages import StageRange, SupervisedStage
from framework.training.tasks.train import Train
from tests.training.device_reads import DeviceReads

TASKS = ("drive", "answer", "caption", "reason", "detect", "answer", "caption", "drive")
"""Long answers and short ones: averaging the means of micro-batches would weigh them by their company."""


@dataclasses.dataclass
class Setting:
    """The tiny recipe's task and model, the step's samples, and how they are rendered."""

    train: Train
    model: LanguageActionModel
    samples: list[Sample]

    def cut(self, micro_batch: int, packed: int | None = None) -> list[MicroBatch]:
        special_ids = self.train.data.renderer(self.model.processor).special_ids
        return MicroBatcher(micro_batch, packed).batches(self.samples, special_ids)


class Recorded(torch.optim.SGD):
    """Keeps the gradients that it was given."""

    def step(self, closure: Any = None) -> Any:
        if closure is not None:
            closure()
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.gradients = {id(p): p.grad.double() for p in parameters if p.grad is not None}


class Endless:
    """The same step for ever, as the loader gives steps."""

    def __init__(self, batches: list[MicroBatch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        while True:
            yield self.batches


class Outputs(Callback):
    """Keeps what the step returned and the gradient that the optimizer was given."""

    returned: dict[str, Any]
    gradient: Tensor

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        pl_module.read_steps()
        self.returned = outputs
        (optimizer,) = trainer.optimizers
        assert isinstance(optimizer, Recorded)
        self.gradient = torch.cat([optimizer.gradients[id(p)].flatten() for p in pl_module.parameters()])


@pytest.fixture(scope="module")
def setting() -> Setting:
    train = instantiate(compose(["recipe=demo", "scale=tiny"], Catalogue()))
    torch.manual_seed(0)
    model = train.model(special_tokens=train.data.special_tokens)
    renderer, samples = train.data.renderer(model.processor), []
    for seed, name in enumerate(TASKS):
        scene = generate_scene(seed)
        rendered = renderer.render(scene, train.data.tasks[name].conversation(scene, "0"))
        samples.append(Sample(rendered, scene, name))
    return Setting(train, model, samples)


def _step(
    setting: Setting,
    batches: list[MicroBatch],
    folder: Path,
    profiler: Profiler | None = None,
    after: Sequence[Callback] = (),
    steps: int = 1,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
) -> Outputs:
    """A step of the real module under the real trainer, at a rate of zero: the model stays what it is."""
    stage = next(setting.train.curriculum.stage_ranges()).stage
    stage = dataclasses.replace(stage, optimizer=optimizer or Recorded, lr=0.0, weight_decay=0.0, clip=1e9)
    outputs = Outputs()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        callbacks=[*([] if optimizer else [outputs]), *after],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        profiler=profiler,
    )
    trainer.fit(SupervisedModule(setting.model, StageRange("broad", stage, 0, steps)), Endless(batches))
    return outputs


@pytest.fixture(scope="module")
def whole(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    """The step in one micro-batch."""
    return _step(setting, setting.cut(8), tmp_path_factory.mktemp("whole"))


def _assert_alike(one: Tensor, other: Tensor) -> None:
    assert float((one - other).norm() / other.norm()) < 1e-5
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_the_metrics_are_complete_for_the_first_callback(setting: Setting, tmp_path: Path) -> None:
    logger = StepLogger("demo", 1, "broad", StepMeter(1, Throughput("32-true", tmp_path)))
    metrics = _step(setting, setting.cut(8), tmp_path, after=[logger]).returned["metrics"]
    for name in ("loss", "gradient_norm", "lr", "step_s", "tokens_per_s", "samples_per_s", "throughput/mfu"):
        assert name in metrics


@pytest.mark.slow
def test_a_whole_step_reads_nothing(
    setting: Setting, head: FlowHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward, backward, the action head, clipping, the fused optimizer, the schedule and the metrics; the step before
    is read apart."""
    reads, step = DeviceReads(), SupervisedModule.training_step

    def counted(module: SupervisedModule, batch: Any, batch_idx: int) -> Any:
        with reads:
            return step(module, batch, batch_idx)

    monkeypatch.setattr(SupervisedModule, "training_step", counted)
    monkeypatch.setattr(SupervisedModule, "_report", lambda module, late: None)
    fused = functools.partial(torch.optim.AdamW, fused=True)
    _step(setting, setting.cut(4), tmp_path, steps=2, optimizer=fused)
    assert not +reads.counts


@pytest.mark.parametrize(("micro_batch", "packed", "count"), [(4, None, 2), (2, None, 4), (1, 400, None)])
@pytest.mark.fast_cases(1)
def test_the_step_is_the_same_however_it_is_cut(
    setting: Setting, whole: Outputs, tmp_path: Path, micro_batch: int, packed: int | None, count: int | None
) -> None:
    batches = setting.cut(micro_batch, packed)
    assert len(batches) == count if count else 1 < len(batches) < len(TASKS)
    learned = [int((batch["labels"] != -100).sum()) for batch in batches]
    assert max(learned) > min(learned), "a mean of means would differ"
    step = _step(setting, batches, tmp_path)
    _assert_alike(step.gradient, whole.gradient)
    assert float(step.returned["loss"]) == pytest.approx(float(whole.returned["loss"]), rel=1e-5)
    for name in ("tokens", "samples"):
        assert step.returned[name] == whole.returned[name]
    for name in ("token_accuracy", "gradient_norm"):
        assert step.returned["metrics"][name] == pytest.approx(whole.returned["metrics"][name], rel=1e-5)
    for part in ("dense", "attention", "vision"):
        assert step.returned["flops"][part] == pytest.approx(whole.returned["flops"][part])
        assert whole.returned["flops"][part] > 0


def test_it_is_the_gradient_of_the_mean_over_supervised_tokens(setting: Setting, whole: Outputs) -> None:
    (batch,) = setting.cut(8)
    logits = setting.model.head(setting.model(batch)).float()
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100)
    gradients = torch.autograd.grad(loss, list(setting.model.parameters()))
    expected = torch.cat([gradient.double().flatten() for gradient in gradients])
    _assert_alike(whole.gradient, expected)
    assert float(whole.returned["loss"]) == pytest.approx(loss.item(), rel=1e-5)
    assert whole.returned["metrics"]["gradient_norm"] == pytest.approx(float(expected.norm()), rel=1e-5)


def test_counts_are_of_all_positions_and_samples(setting: Setting, whole: Outputs) -> None:
    assert whole.returned["samples"] == len(TASKS)
    assert whole.returned["tokens"] == sum(len(sample.rendered.input_ids) for sample in setting.samples)


def test_a_micro_batch_without_labels_adds_nothing_to_the_gradient(
    setting: Setting, whole: Outputs, tmp_path: Path
) -> None:
    (batch,) = setting.cut(8)
    step = _step(setting, [without_labels(batch), batch], tmp_path)
    _assert_alike(step.gradient, whole.gradient)


@pytest.mark.slow
def test_a_profile_names_the_parts_of_the_step(setting: Setting, tmp_path: Path) -> None:
    _step(setting, setting.cut(2), tmp_path, Profile(skip=0, steps=1).profiler(tmp_path, "broad", 1))
    with gzip.open(tmp_path / "broad.attempt-1.rank-0.trace.json.gz", "rt") as stream:
        events = json.load(stream)["traceEvents"]
    counts = Counter(event["name"] for event in events if event.get("cat") == "user_annotation")
    assert [counts[name] for name in ("data wait", "forward", "backward", "optimizer")] == [1, 4, 4, 1]


def test_a_step_that_teaches_nothing_is_an_error(setting: Setting, tmp_path: Path) -> None:
    renderer = setting.train.data.renderer(setting.model.processor)
    with pytest.raises(ValueError, match="no supervised tokens"):
        _step(setting, [without_labels(collate(setting.samples[:1], renderer.special_ids))], tmp_path)


@pytest.fixture
def head(setting: Setting) -> Iterator[FlowHead]:
    """The action head that the model has for one test."""
    torch.manual_seed(0)
    head = FlowHead(hidden=setting.model.backbone.config.text_config.hidden_size, width=64, layers=2)
    torch.nn.init.normal_(head.out.weight, std=0.1)
    setting.model.action_head = head
    yield head
    setting.model.action_head = None


def test_an_action_head_adds_the_mean_of_its_plans(setting: Setting, head: FlowHead, tmp_path: Path) -> None:
    model, (batch,) = setting.model, setting.cut(8)
    plans = plan_targets(head, batch, 0)
    assert plans.learned == TASKS.count("drive")
    mean = plans.loss(head, model(batch, plans.prompts.places)) / plans.learned
    positions, targets = next_token_positions(batch["labels"])
    answers = CrossEntropy()(model(batch, positions), model.head, targets).total / len(targets)
    gradients = torch.autograd.grad(answers + mean, list(model.parameters()))
    step = _step(setting, setting.cut(1, 400), tmp_path)
    _assert_alike(step.gradient, torch.cat([gradient.double().flatten() for gradient in gradients]))
    assert step.returned["metrics"]["plan_loss"] == pytest.approx(mean.item(), rel=1e-5)
    assert float(step.returned["loss"]) == pytest.approx(answers.item(), rel=1e-5)


def test_an_action_head_sees_no_answer_and_draws_by_sample_and_step(setting: Setting, head: FlowHead) -> None:
    model, (batch,) = setting.model, setting.cut(8)
    plans = plan_targets(head, batch, 0)
    with torch.no_grad():
        before = plans.loss(head, model(batch, plans.prompts.places))
        batch["input_ids"] = batch["input_ids"].where(batch["labels"] == -100, 5)
        torch.testing.assert_close(plans.loss(head, model(batch, plans.prompts.places)), before)
    packed = torch.cat([each.noise for micro in setting.cut(1, 400) if (each := plan_targets(head, micro, 0)).learned])
    assert sorted(packed.flatten().tolist()) == sorted(plans.noise.flatten().tolist())
    assert not torch.equal(plan_targets(head, batch, 1).noise, plans.noise)


def test_without_plans_an_action_head_has_a_gradient_of_zeros(setting: Setting, head: FlowHead) -> None:
    batch = without_labels(setting.cut(8)[0])
    plans = plan_targets(head, batch, 0)
    assert plans.learned == 0
    gradients = torch.autograd.grad(
        plans.loss(head, setting.model(batch, plans.prompts.places)), list(head.parameters())
    )
    assert not any(gradient.any() for gradient in gradients)


class Poisoned(CrossEntropy):
    """Its loss is not a number."""

    def __call__(self, hidden: Tensor, head: Any, targets: Tensor) -> LossSum:
        loss = super().__call__(hidden, head, targets)
        return loss._replace(total=loss.total * float("nan"))


@pytest.mark.guarantee("Non-finite numbers neither change weights nor reach a checkpoint")
def test_a_step_that_is_not_finite_changes_neither_weights_nor_optimizer(setting: Setting, tmp_path: Path) -> None:
    stage = next(setting.train.curriculum.stage_ranges()).stage
    before = {name: value.clone() for name, value in setting.model.state_dict().items()}
    trainer = Trainer(
        accelerator="cpu",
        max_steps=2,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    assert isinstance(stage, SupervisedStage)
    poisoned = dataclasses.replace(stage, objective=Poisoned())
    trainer.fit(SupervisedModule(setting.model, StageRange("broad", poisoned, 0, 2)), Endless(setting.cut(8)))
    assert trainer.global_step == 2
    for name, value in setting.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    (optimizer,) = trainer.optimizers
    held = [value for state in optimizer.state.values() for value in state.values()]
    assert not any(value.any() for value in held), "as if it had never stepped"
