"""The script that builds a vehicle's engines calls each program with the options that it has."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from framework.model.edge_commands import Precision, write_commands

PROGRAM = '#!/usr/bin/env bash\necho "$(basename "$0") $*" >> "$CALLS"\n'


@pytest.mark.parametrize("precision", ["fp16", "int4_awq"])
def test_each_program_is_called_with_its_options(precision: Precision, tmp_path: Path) -> None:
    script = write_commands(tmp_path, precision, 1500, 256, {"lidar": 4})
    programs = ("tensorrt-edgellm-quantize", "tensorrt-edgellm-export", "trtexec")
    examples = ("llm/llm_build", "multimodal/visual_build")
    for file in (*(f"bin/{name}" for name in programs), *(f"edge/build/examples/{name}" for name in examples)):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(PROGRAM)
        (tmp_path / file).chmod(0o755)
    work, calls = tmp_path / "a b", tmp_path / "calls"
    place = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "WORK": str(work), "CALLS": str(calls), "ROWS": "512"}
    assert subprocess.run([script, "host"], env=place, check=False).returncode == 0
    missing = subprocess.run([script, "target"], env=place, check=False, capture_output=True, text=True)
    assert "set it to a built checkout of TensorRT-Edge-LLM" in missing.stderr
    built = {**place, "EDGELLM": str(tmp_path / "edge")}
    assert subprocess.run([script, "target"], env=built, check=False).returncode == 0
    assert subprocess.run([script], env=place, check=False, capture_output=True).returncode == 2
    checkpoint = tmp_path if precision == "fp16" else work / precision
    expected = [
        f"tensorrt-edgellm-quantize llm --model_dir {tmp_path} --output_dir {work}/int4_awq --quantization int4_awq "
        "--visual_quantization fp8 --image_dataset mmmu",
        f"tensorrt-edgellm-export {checkpoint} {work}/onnx",
        f"llm_build --onnxDir {work}/onnx/llm --engineDir {work}/engines/llm --maxBatchSize 1 --maxInputLen 1536 "
        "--maxKVCacheCapacity 2560",
        f"visual_build --onnxDir {work}/onnx/visual --engineDir {work}/engines --minImageTokens 4 "
        "--maxImageTokens 2048 --maxImageTokensPerImage 256",
        f"trtexec --onnx={tmp_path}/onnx/lidar.onnx --saveEngine={work}/engines/lidar.engine "
        "--minShapes=values:1x1x4,mask:1x1 --optShapes=values:1x512x4,mask:1x512 --maxShapes=values:1x512x4,mask:1x512",
    ]
    assert calls.read_text().splitlines() == expected[precision == "fp16" :]
