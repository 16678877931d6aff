"""Encoders in onnxruntime equal ours, with any number of samples and rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from framework.model.encoders.boxes import BoxEncoder
from framework.model.encoders.calibration import CalibrationEncoder
from framework.model.onnx_export import export_encoders
from tests.model.conftest import build

onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'framework[edge]'")
SIZES = ((2, 5), (3, 4), (1, 11))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_encoders_in_onnxruntime_equal_ours(tmp_path: Path) -> None:
    model, gaps = build(), {}
    hidden = model.backbone.config.text_config.hidden_size
    model.encoders["polar"] = BoxEncoder(hidden=hidden, polar=True)
    model.encoders["calibration"] = CalibrationEncoder(hidden=hidden)
    for file in export_encoders(model, tmp_path):
        encoder, session = model.encoders[file.stem], onnxruntime.InferenceSession(file)
        for samples, rows in SIZES:
            values = 5 * torch.randn(samples, rows, encoder.channels, generator=torch.Generator().manual_seed(rows))
            if isinstance(encoder, BoxEncoder):
                values[..., 9] = 3.0
            mask = torch.ones(samples, rows, dtype=torch.bool)
            mask[:, rows // 2 :] = False
            asked = {"values": values.numpy(), "mask": mask.numpy()}
            features, *keep = session.run(None, {one.name: asked[one.name] for one in session.get_inputs()})
            with torch.no_grad():
                ours, kept = encoder(values, mask)
            assert [(each == kept.numpy()).all() for each in keep] == ([] if kept is None else [True])
            gaps[file.stem, samples, rows] = float(np.abs(features - ours.numpy()).max())
    print(f"\n{len(gaps)} comparisons, largest difference {max(gaps.values()):.1e}")
    assert {name for name, _, _ in gaps} == set(model.encoders)
    assert max(gaps.values()) < 1e-4
