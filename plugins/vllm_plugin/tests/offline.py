"""Run by a python with vLLM: answers one request with raw media about an exported folder.

    python offline.py FOLDER

FOLDER holds `export/`, `request.json` and `media.npz`; `answer.json` is written next to them.
"""

import json
import sys
from pathlib import Path

import numpy as np
from language_action_vllm import ARCHITECTURE
from vllm import LLM, SamplingParams


def main(folder: Path) -> None:
    """Answer the request."""
    request = json.loads((folder / "request.json").read_text())
    arrays = np.load(folder / "media.npz")
    media = {name: arrays[name] for name in request["sensors"]}
    media["video"] = [(arrays["frames"], request["metadata"])]
    model = LLM(
        str(folder / "export"), trust_remote_code=True, hf_overrides={"architectures": [ARCHITECTURE]}, dtype="float32",
        max_model_len=2048, enforce_eager=True, max_num_batched_tokens=8192, max_num_seqs=4,
        limit_mm_per_prompt={"image": 1, "video": 1}, generation_config="vllm",
    )  # fmt: skip
    sampling = SamplingParams(temperature=0.0, max_tokens=request["tokens"], logprobs=0, ignore_eos=True)
    (output,) = model.generate([{"prompt": request["text"], "multi_modal_data": media}], sampling)
    tokens = list(output.outputs[0].token_ids)
    scores = [entry[token].logprob for entry, token in zip(output.outputs[0].logprobs, tokens, strict=True)]
    answer = {"prompt": list(output.prompt_token_ids), "tokens": tokens, "logprobs": scores}
    (folder / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
