"""Log-probabilities of a vLLM server with the plug-in `plugins/vllm_plugin`, next to the trainer's, by modality.

    VLLM_PYTHON=.../bin/python python -m tools.bench.vllm_parity

A tiny model of random weights has every encoder. The engine of reinforcement learning sends it to a server on this
machine's CPU, which answers prompts with one modality each, and with all of them; the trainer scores the same tokens.
`unseen_nats` is what the trainer's own scores change by where it is shown other values in the media's place.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from framework.data.pipeline import DataPipeline
from framework.data.render.chat import ChatRenderer
from framework.data.render.collate import collate
from framework.data.render.sample import Sample
from framework.data.render.tasks import Conversation
from framework.generation.engine import Requests
from framework.launch.host import free_port
from framework.model.language_action import LanguageActionModel
from framework.recipe.compose import compose
from framework.recipe.instantiate import instantiate
from framework.scene.types import Scene
from framework.scene.world.generate import generate_scene
from framework.training.rl.engine.vllm import VLLMEngine
from framework.training.rl.engine.vllm_process import VLLMProcess
from framework.training.rl.engine.weight_transfer import Disk
from tools.bench.machine import write_result

CAMERA = "front"
PICTURES = {"text": 0, "image": 1, "video": 4}
"""Frames of the camera that a case shows; sensors' cases show none, that of all shows a clip."""
SENSORS = ("lidar", "radar", "boxes", "ego", "calibration")
QUESTION = "Say what you see."
SCENES = 2
TOKENS = 8
GATE = 1e-3
"""What reinforcement learning's own test of a server allows, in nats a token at float32."""
WORDS = (
    "recipe=supervised", "scale=tiny", "data/sensors=[small,calibration]",
    "model/encoders=[lidar,radar,boxes,ego,calibration]", f"data.cameras=[{CAMERA}]", "data.image_width=64",
)  # fmt: skip


def model_and_data() -> tuple[LanguageActionModel, DataPipeline]:
    """A tiny model of random weights with every encoder, whose features are as strong as words, and its data."""
    task = instantiate(compose(list(WORDS)), inputs=False)
    torch.manual_seed(0)
    model = task.model(special_tokens=task.data.special_tokens).eval()
    with torch.no_grad():
        for encoder in model.encoders.values():
            for module in encoder.modules():
                if isinstance(module, torch.nn.LayerNorm):
                    module.weight.fill_(0.5)
    return model, task.data


def prompts(model: LanguageActionModel, data: DataPipeline, case: str, scenes: int = SCENES) -> list[Sample]:
    """The prompts of a case: of `text` alone, with one modality, or with `all`."""
    shown = SENSORS if case == "all" else tuple(name for name in SENSORS if name == case)
    frames = PICTURES["video"] if case == "all" else PICTURES.get(case, 0)
    renderer = _renderer(model, data, shown, [CAMERA] if frames else [])
    made = [generate_scene(seed, "intersection", camera_frames=max(frames, 1)) for seed in range(scenes)]
    asked = Conversation(QUESTION, "")
    return [Sample(renderer.render(scene, asked, for_generation=True), scene, "drive") for scene in made]


def _renderer(
    model: LanguageActionModel, data: DataPipeline, sensors: Sequence[str], cameras: list[str]
) -> ChatRenderer:
    shown = {name: data.sensors[name] for name in sensors}
    return ChatRenderer(model.processor, shown, data.max_length, cameras, data.image_width)


def raw_request(
    model: LanguageActionModel, data: DataPipeline, scene: Scene
) -> tuple[str, np.ndarray, dict[str, Any], dict[str, np.ndarray]]:
    """A scene with all modalities as a request of vLLM's own: the text with each placeholder once, the clip's frames
    `(t, h, w, 3)` with their times, and the rows of each sensor.
    """
    renderer = _renderer(model, data, SENSORS, [CAMERA])
    (view,) = renderer.views(scene)
    rows = {name: np.asarray(renderer.sensors[name].rows(scene), dtype=np.float32) for name in SENSORS}
    once = "".join(renderer.sensors[name].placeholder for name in SENSORS)
    content = [{"type": "video"}, {"type": "text", "text": once + QUESTION}]
    text = model.processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    frames = np.stack([np.asarray(image) for image in view.images])
    return text, frames, view.metadata | {"do_sample_frames": False}, rows


@torch.no_grad()
def trainer_logprobs(
    model: LanguageActionModel, data: DataPipeline, prompt: Sample, answer: Sequence[int], banned: Sequence[int] = ()
) -> torch.Tensor:
    """The trainer's log-probabilities of an answer's tokens."""
    special = data.renderer(model.processor).special_ids
    batch = collate([prompt], special)
    tokens = torch.tensor([list(answer)])
    batch["input_ids"] = torch.cat([batch["input_ids"], tokens], dim=1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    ids = batch["input_ids"]
    batch["mm_token_type_ids"] = (ids == special.image).long() + 2 * (ids == special.video).long()
    logits = model.head(model(batch)[0, -len(answer) - 1 : -1]).float()
    logits[:, list(banned)] = -torch.inf
    return logits.log_softmax(dim=-1).gather(-1, tokens[0, :, None])[:, 0]


def unseen(prompt: Sample) -> Sample:
    """The prompt with its pictures in negative, and the geometry of its sensors mirrored."""
    media = {name: values if "grid" in name else -values for name, values in prompt.rendered.media.items()}
    rows = {name: values.copy() for name, values in prompt.rendered.sensors.items()}
    for values in rows.values():
        values[:, :4] *= -1.0  # the class of a box is further back
    return prompt._replace(rendered=replace(prompt.rendered, media=media, sensors=rows))


@contextmanager
def served(model: LanguageActionModel, python: str, folder: Path) -> Iterator[VLLMEngine]:
    """The engine of reinforcement learning over a server of its own on this machine's CPU."""
    options: dict[str, Any] = {
        "dtype": "float32", "max-model-len": 2048, "enforce-eager": True, "no-enable-chunked-prefill": True,
        "max-num-batched-tokens": 8192, "max-num-seqs": 16,
    }  # fmt: skip
    surroundings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    process = VLLMProcess(python, options, surroundings)
    url, more = f"http://127.0.0.1:{free_port()}", {"patience_s": 3000.0, "max_logprob_gap": GATE}
    engine = VLLMEngine(model, url, str(folder), "float32", Disk(), process, **more)
    try:
        yield engine
    finally:
        process.stop()


def gaps(engine: VLLMEngine, model: LanguageActionModel, data: DataPipeline, version: int = 0) -> dict[str, Any]:
    """By case the largest and the mean gap between engine and trainer, in nats a token, and what was compared."""
    weights = [*model.backbone.state_dict().items()]
    weights += [(f"encoders.{name}", tensor) for name, tensor in model.encoders.state_dict().items()]
    engine.sync(weights, version)
    special, found = data.renderer(model.processor).special_ids, {}
    for case in (*PICTURES, *SENSORS, "all"):
        asked = prompts(model, data, case)
        seeds = tuple((2 * number, 2 * number + 1) for number in range(len(asked)))
        batch = collate(asked, special, side="left")
        groups = engine.generate(Requests(batch, (None,) * len(asked), seeds, TOKENS, 1.0))
        pairs = [(prompt, answer) for prompt, group in zip(asked, groups, strict=True) for answer in group]
        given = torch.cat([torch.tensor(answer.logprobs) for _, answer in pairs])
        own, blind = (
            torch.cat([trainer_logprobs(model, data, of(prompt), each.tokens, engine.banned) for prompt, each in pairs])
            for of in (lambda prompt: prompt, unseen)
        )
        gap = (given - own).abs()
        found[case] = {
            "largest_nats": float(gap.max()), "mean_nats": float(gap.mean()), "tokens": len(gap),
            "prompt_tokens": int(batch["attention_mask"].sum(dim=1).max()),
            "unseen_nats": float((own - blind).abs().max()),
        }  # fmt: skip
    return found


def main() -> None:
    """Measure, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=os.environ.get("VLLM_PYTHON"), help="of an environment with vLLM")
    parser.add_argument("--out", type=Path, default=Path("tools/bench/results/vllm_parity.json"))
    given = parser.parse_args()
    if given.python is None:
        parser.error("--python, or VLLM_PYTHON: name the python of an environment with vLLM and plugins/vllm_plugin")
    model, data = model_and_data()
    with tempfile.TemporaryDirectory() as folder, served(model, given.python, Path(folder) / "engine") as engine:
        figures = gaps(engine, model, data)
    write_result(given.out, "vllm_parity", {"vllm": "0.32 on a CPU", "dtype": "float32", "gate": GATE}, figures)


if __name__ == "__main__":
    main()
