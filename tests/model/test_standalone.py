"""An exported folder needs nothing of this repository: transformers loads the whole model from it, equal to ours."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor

from framework.model.encoders.calibration import CalibrationEncoder
from framework.model.encoders.lidar import PillarEncoder
from framework.model.generate import sample
from framework.model.hf_export import CODE, export
from framework.model.language_action import LanguageActionModel
from framework.model.standalone import standalone
from tests.model.conftest import EVERYTHING, SENSORS, build, make_batch

MIXED = [EVERYTHING, ("Where to?", 0, ("lidar", "ego")), ("Is a pedestrian ahead of us?", 1, ())]
ANSWERS = """
import sys, torch
for name in ("framework", "tests", "lightning", "llguidance", "hydra", "PIL", "torchvision"):
    sys.modules[name] = None  # an import of it fails
from transformers import AutoModel, AutoProcessor
folder = sys.argv[1]
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
given = torch.load(f"{folder}/given.pt")
with torch.no_grad():
    logits = model(**given["batch"]).logits[given["batch"]["attention_mask"].bool()]
tokens = model.generate(**given["batch"], max_new_tokens=given["tokens"])[:, given["batch"]["input_ids"].shape[1]:]
ids = processor(text=given["prompt"], sensors=given["sensors"])["input_ids"]
refused = []
for medium in ("images", "videos"):
    try:
        processor(text=given["prompt"], **{medium: [torch.zeros(3, 8, 8)]})
    except ImportError as error:
        refused.append(str(error))
torch.save({"logits": logits, "tokens": tokens, "ids": ids, "refused": refused}, f"{folder}/found.pt")
"""


def _lively(model: LanguageActionModel) -> LanguageActionModel:
    """With stronger layers: else the tied embedding repeats the prompt's last token."""
    with torch.no_grad():
        for layer in model.backbone.model.language_model.layers.parameters():
            layer.mul_(8.0 if layer.ndim > 1 else 1.0)
    return model


def _tensors(batch: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in batch.items() if key not in ("labels", "scenes", "tasks", "sample_ids")}


@pytest.mark.slow
@pytest.mark.guarantee("An exported folder gives our logits and answers with torch and transformers alone")
def test_logits_and_greedy_answers_of_all_sensors_are_ours_without_this_repository(tmp_path: Path) -> None:
    model = _lively(build())
    export(model, tmp_path)
    batch = make_batch(model, MIXED)
    with torch.no_grad():
        logits = model.head(model(batch))[batch["attention_mask"].bool()]
    answers = sample(model, batch, model.processor.tokenizer, [None] * len(MIXED), 24)
    rows = {"ego": np.zeros((5, 4)), "lidar": np.ones((9, 4)), "boxes": np.zeros((3, 11))}
    prompt = "<|lidar|><|box|><|ego|>Where to?"
    given = {"batch": _tensors(dict(batch)), "tokens": 24, "prompt": [prompt], "sensors": None}
    torch.save(given | {"sensors": [{name: torch.tensor(each) for name, each in rows.items()}]}, tmp_path / "given.pt")
    done = subprocess.run(
        [sys.executable, "-c", ANSWERS, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "found.pt")
    torch.testing.assert_close(found["logits"], logits, atol=1e-5, rtol=1e-4)
    end = model.processor.tokenizer.eos_token_id
    theirs = [[*row[: row.index(end)], end] if end in row else row for row in found["tokens"].tolist()]
    assert theirs == [list(answer.tokens) for answer in answers]
    assert len({token for answer in answers for token in answer.tokens}) > 4, "one token over and over shows nothing"
    expanded = "<|lidar|>" * SENSORS["lidar"][1] + "<|box|>" * 3 + "<|ego|>" * 5 + "Where to?"
    assert found["ids"] == model.processor.tokenizer([expanded])["input_ids"]
    assert [message.partition(":")[0] for message in found["refused"]] == ["images", "videos"]
    assert all("Pillow and torchvision" in message for message in found["refused"])


def test_the_folders_processor_refuses_what_the_encoders_cannot_read(
    model: LanguageActionModel, tmp_path: Path
) -> None:
    export(model, tmp_path)
    whole = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    ours, theirs = model.encoders.state_dict(), whole.encoders.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    processor = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    for sensors, message in (
        ({"sonar": np.zeros((2, 4))}, "there is no sonar; there are: lidar, radar, boxes, ego"),
        ({"ego": np.zeros((2, 5))}, r"ego has shape \(2, 5\); give finite rows \(n, 4\)"),
        ({"ego": np.full((2, 4), np.nan)}, "give finite rows"),
        ({"radar": np.zeros((2, 5))}, r"holds 0 times <\|radar\|>; put it once"),
    ):
        with pytest.raises(ValueError, match=message):
            processor(text=["<|ego|>Where to?"], sensors=[sensors])
    with pytest.raises(ValueError, match=r"holds <\|ego\|>, but there are no rows of ego"):
        processor(text=["<|ego|>Where to?"])


def test_the_file_is_plain_python_of_few_imports(model: LanguageActionModel, tmp_path: Path) -> None:
    export(model, tmp_path)
    text = (tmp_path / f"{CODE}.py").read_text()
    compile(text, CODE, "exec")
    lines = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
    packages = {line.split()[1].split(".")[0] for line in lines}
    assert packages <= {"__future__", "collections", "inspect", "math", "numpy", "os", "safetensors", "torch",
                        "transformers", "typing"}  # fmt: skip
    assert "@component" not in text
    assert "Annotated" not in text


def test_a_module_is_brought_along_with_what_it_uses() -> None:
    space: dict[str, object] = {"__name__": "alone"}
    exec(compile(standalone([CalibrationEncoder, PillarEncoder], "Two."), "alone", "exec"), space)
    torch.manual_seed(0)
    ours = CalibrationEncoder(hidden=16, grid=2)
    torch.manual_seed(0)
    theirs = space["CalibrationEncoder"](hidden=16, grid=2)  # type: ignore[operator]
    values, mask = torch.randn(2, 3, ours.channels), torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(ours(values, mask)[0], theirs(values, mask)[0])


def test_names_that_would_hide_each_other_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, value in (("first_part", 1), ("second_part", 2)):
        (tmp_path / f"{name}.py").write_text(f"SCALE = {value}\n\nclass {name.title()}:\n    pass\n")
    classes = [getattr(importlib.import_module(name), name.title()) for name in ("first_part", "second_part")]
    with pytest.raises(ValueError, match="SCALE: several of the modules of one file define it"):
        standalone(classes, "Both.")
