"""MFU is the model's FLOPs against a peak that is known, or measured once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from framework.run.layout import PEAK_FLOPS_FILE
from framework.run.step_output import StepOutput
from framework.tracking.devices import DEVICES, arithmetic, find_device, measured_flops, peak_flops
from framework.tracking.step_logger import StepLogger
from framework.tracking.step_meter import StepMeter
from framework.tracking.throughput import Throughput

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "expected", "bf16"),
    [
        ("NVIDIA H100 80GB HBM3", "H100", 989.5),
        ("NVIDIA H100 PCIe", "H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", "H100 NVL", 835.5),
        ("NVIDIA H200", "H200", 989.5),
        ("NVIDIA GH200 480GB", "GH200", 989.5),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB", 312.0),
        ("NVIDIA A100-SXM4-80GB", "A100", 312.0),
        ("NVIDIA B200", "B200", 2250.0),
        ("NVIDIA GB200", "GB200", 2500.0),
        ("NVIDIA L40S", "L40S", 362.0),
        ("NVIDIA L4", "L4", 121.0),
        ("NVIDIA A10G", "A10G", 70.0),
        ("h100", "H100", 989.5),
    ],
)
def test_devices_are_known_by_the_names_that_drivers_give(name: str, expected: str, bf16: float) -> None:
    found = find_device(name)
    assert found is not None
    assert (found.name, found.bf16) == (expected, bf16)


def test_no_device_hides_behind_another_in_the_table() -> None:
    assert [find_device(device.name) for device in DEVICES] == list(DEVICES)
    assert find_device("NVIDIA TITAN V") is None


@pytest.mark.parametrize(
    ("precision", "matmul", "expected"),
    [
        ("bf16-mixed", "highest", "bf16"),
        ("bf16-true", "high", "bf16"),
        ("32-true", "highest", "fp32"),
        ("32-true", "high", "tf32"),
        ("fp8", "highest", "fp8"),
    ],
)
def test_arithmetic_follows_the_precision(precision: str, matmul: str, expected: str) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(matmul)
    try:
        assert arithmetic(precision) == expected
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_known_device_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr("framework.tracking.devices.measured_flops", lambda *_: pytest.fail("measured"))
    assert peak_flops(torch.device("cuda", 0), "bf16-mixed") == 989.5e12
    assert peak_flops(torch.device("cuda", 0), "fp8") == 1979e12


def test_an_unknown_device_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = peak_flops(CPU, "32-true", tmp_path)
    (kept,) = json.loads((tmp_path / PEAK_FLOPS_FILE).read_text()).values()
    assert first == kept > 1e8
    monkeypatch.setattr("framework.tracking.devices.measured_flops", lambda *_: pytest.fail("measured again"))
    assert peak_flops(CPU, "32-true", tmp_path) == first


def test_the_measured_peak_is_the_speed_of_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, *(0.25 * n for n in range(100))])
    monkeypatch.setattr("framework.tracking.devices.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert measured_flops(CPU, torch.float32, seconds=1.0) == 2 * 512**3 / 0.25


def test_a_busy_machine_has_a_peak_too() -> None:
    assert 0 < measured_flops(CPU, torch.float32, seconds=0.0) < math.inf


def throughput(peak: float, devices: int, monkeypatch: pytest.MonkeyPatch) -> Throughput:
    monkeypatch.setattr("framework.tracking.throughput.peak_flops", lambda *_: peak)
    found = Throughput("bf16-mixed")
    found.start(CPU, devices)
    return found


def test_mfu_leaves_out_what_is_recomputed_and_hfu_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = throughput(1e15, 4, monkeypatch).of_step({"dense": 6e15, "vision": 2e15, "recomputed": 1e15}, 4.0)
    assert metrics == pytest.approx(
        {
            "throughput/dense_tflop": 6000,
            "throughput/vision_tflop": 2000,
            "throughput/recomputed_tflop": 1000,
            "throughput/tflop_per_s_per_device": 500,
            "throughput/mfu": 0.5,
            "throughput/hfu": 9 / 16,
        }
    )


def test_the_meter_reports_it_and_the_memory_of_each_window(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = throughput(1e12, 2, monkeypatch)
    windows: list[int] = []
    monkeypatch.setattr(watched, "begin_window", lambda: windows.append(stand_in.global_step))
    clock = iter(range(100))
    monkeypatch.setattr("framework.tracking.step_meter.time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    heard: list[dict[str, float]] = []
    listener = SimpleNamespace(log_metrics=lambda metrics, step: heard.append(dict(metrics)))
    stand_in = SimpleNamespace(global_step=0, loggers=[listener], world_size=2)
    trainer, module = cast(Trainer, stand_in), cast(LightningModule, SimpleNamespace(device=CPU))
    meter = StepMeter(every=2, throughput=watched)
    logger = StepLogger("demo", 1, "broad", meter)
    logger.on_train_start(trainer, module)
    for _ in range(4):
        logger.on_train_batch_start(trainer, module, None, 0)
        stand_in.global_step += 1
        output: StepOutput = {
            "loss": torch.tensor(1.0),
            "tokens": 8,
            "samples": 2,
            "flops": {"dense": 1e12},
            "metrics": {"loss": 1.0},
        }
        meter.end_step(stand_in.global_step, output)
        logger.on_step_read(stand_in.global_step, output)
        assert output["metrics"]["throughput/mfu"] == pytest.approx(0.5)
    assert windows == [0, 2]
    assert [metrics["throughput/peak_memory_gib"] > 0.01 for metrics in heard] == [True, True]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_window_of_gpu_memory_forgets_the_one_before() -> None:
    watched = Throughput("bf16-mixed")
    watched.start(torch.device("cuda", 0), 1)
    large = torch.zeros(1 << 26, device="cuda")
    before = watched.memory()["throughput/peak_memory_gib"]
    del large
    watched.begin_window()
    assert watched.memory()["throughput/peak_memory_gib"] < before - 0.2
