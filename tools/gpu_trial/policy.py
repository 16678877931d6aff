"""Step: a DAPO step with the embedded sampler."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from framework.model.backbone import RandomBackbone
from tools.bench.dapo import free_text_task
from tools.bench.dapo_sides import PHASES, OurPolicyModule, PolicyJob
from tools.bench.sft import architecture_of
from tools.gpu_trial.setting import Setting


def dapo_step(setting: Setting) -> dict[str, Any]:
    """Seconds of a step and its phases: prompts with an image, each answered by a group in free text. Weights are
    random, so that most answers are as long as they may be and none earns a reward. vLLM is measured by a run of its
    own (`stage/sampler=vllm`): here it is only looked for.
    """
    prompts, group, tokens, steps = (2, 4, 8, 1) if setting.dry else (8, 16, 64, 3)
    with tempfile.TemporaryDirectory() as cache:
        words = ["parallel=cpu"] if setting.dry else ["parallel=gpu", "parallel.devices=1", "parallel/recompute=none"]
        words += ["parallel/compilation=none"]
        task, stage = free_text_task(prompts, group, tokens, Path(cache), words)
        build = task.model
        if not setting.dry:
            build = functools.partial(build, backbone=RandomBackbone(architecture_of("0.6b")))
        task = dataclasses.replace(task, model=build)
        torch.manual_seed(0)
        weights = task.model(special_tokens=task.data.special_tokens).state_dict()
        turn = OurPolicyModule().train(PolicyJob(task, stage, weights, 1 + steps, 1), 1)
    phases = {phase: statistics.median(turn.clock.counted(phase, 0)) for phase in PHASES}
    generated = prompts * group * turn.length
    return {
        "step_s": statistics.median(turn.clock.counted("step", 0)),
        "host_s_by_phase": phases,
        "device_s_by_phase": turn.times,
        "answer_tokens": turn.length,
        "generated_tokens_per_s": generated / phases["generation"],
        "vllm": "installed" if find_spec("vllm") else "not installed",
    }
