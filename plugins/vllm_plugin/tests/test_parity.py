"""A real vLLM server with the plug-in scores answers as the trainer does: each modality, and all of them together.

Wants the python of an environment with vLLM 0.32 and this plug-in in VLLM_PYTHON; CONTRIBUTING.md says how to make one.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from framework.model.hf_export import export
from tools.bench.vllm_parity import GATE, TOKENS, gaps, model_and_data, prompts, raw_request, served, trainer_logprobs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif("VLLM_PYTHON" not in os.environ, reason="VLLM_PYTHON names no python with vLLM"),
]
OFFLINE = Path(__file__).with_name("offline.py")
SEEN = 10 * GATE
"""What a modality at least changes: else a server that is blind to it would pass."""


@pytest.mark.guarantee("A vLLM server sees what the trainer sees, and the gate names what disagrees")
def test_a_server_scores_as_the_trainer_does(tmp_path: Path) -> None:
    model, data = model_and_data()
    with served(model, os.environ["VLLM_PYTHON"], tmp_path / "engine") as engine:
        found = gaps(engine, model, data)
    assert {case: figures for case, figures in found.items() if figures["largest_nats"] > GATE} == {}
    assert {case for case, figures in found.items() if figures["unseen_nats"] < SEEN} == {"text"}


def test_raw_media_become_what_the_trainer_renders(tmp_path: Path) -> None:
    """An export, served by itself: vLLM makes the trainer's token ids of it, and its scores are the trainer's."""
    model, data = model_and_data()
    (prompt,) = prompts(model, data, "all", scenes=1)
    text, frames, metadata, rows = raw_request(model, data, prompt.scene)
    np.savez(tmp_path / "media.npz", frames=frames, **rows)
    request = {"text": text, "metadata": metadata, "sensors": list(rows), "tokens": TOKENS}
    (tmp_path / "request.json").write_text(json.dumps(request))
    export(model, tmp_path / "export", data.image_width)
    surroundings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    command = [os.environ["VLLM_PYTHON"], str(OFFLINE), str(tmp_path)]
    done = subprocess.run(command, env=os.environ | surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["prompt"] == prompt.rendered.input_ids.tolist()
    own = trainer_logprobs(model, data, prompt, answer["tokens"])
    assert answer["logprobs"] == pytest.approx(own.tolist(), abs=GATE)
