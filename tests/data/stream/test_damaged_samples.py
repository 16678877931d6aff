"""Whatever a record, an image, a shard or an index holds: a sample comes out, or a quarantine entry with its reason.

Few examples by default; `HYPOTHESIS_PROFILE=large` tries a hundred times as many.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load, save

from framework.data.render.sensors import BoxesInput, EgoInput, LidarInput, RadarInput, SensorInput
from framework.data.render.tasks import Answer, Caption, Detect, Drive
from framework.data.shards.quarantine import QuarantinedSample, QuarantinePolicy
from framework.data.shards.record import encode
from framework.data.shards.writer import Work, write_shards
from framework.data.stream.address import Address
from framework.data.stream.loader import StepLoader
from framework.data.stream.mixture import Mixture, Part, Shards
from framework.model.backbone import RandomBackbone
from framework.model.codecs.boxes import BoxTextCodec
from framework.model.codecs.waypoints import WaypointCodec
from framework.scene.types import Camera, Scene, SceneError
from framework.scene.world.generate import generate_scene
from tests.data.streams import pipeline
from tests.fuzzing import fuzz

TASKS = {"drive": Drive(WaypointCodec()), "detect": Detect(BoxTextCodec(40)), "answer": Answer(), "caption": Caption()}
SENSORS: dict[str, SensorInput] = {
    "lidar": LidarInput(2),
    "radar": RadarInput(2),
    "boxes": BoxesInput(),
    "ego": EgoInput(),
}


def _scenes(index: int) -> Iterator[Scene]:
    """A scene with everything; every second one with clips instead of stills."""
    yield generate_scene(index, "straight", camera_frames=1 + 2 * (index % 2))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged") / "shards"
    write_shards(Work([0, 1, 2, 3], _scenes), folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def processor() -> Any:
    return RandomBackbone({}).processor([sensor.placeholder for sensor in SENSORS.values()])


def _loader(shards: Path, processor: Any, folder: Path, **changes: Any) -> StepLoader:
    mixture = Mixture({"only": Part(Shards(local=shards), dict.fromkeys(TASKS, 1.0))})
    chosen: dict[str, Any] = {"tasks": TASKS, "sensors": SENSORS, "global_batch": 4, "max_length": 4096} | changes
    return pipeline(**chosen).loader(mixture, processor, stage="sft", samples=40, seed=0, folder=folder)


@pytest.fixture(scope="module")
def loader(shards: Path, processor: Any, tmp_path_factory: pytest.TempPathFactory) -> StepLoader:
    return _loader(shards, processor, tmp_path_factory.mktemp("run"))


def outcome(loader: StepLoader, record: dict[str, Any], turn: int = 0) -> str | None:
    """Reads `record` in place of the first sample. Returns why it is quarantined; None for a sound sample."""
    reader = loader.mixture.readers[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "record", lambda *_: copy.deepcopy(record))
        sample = loader.sample(Address(0, turn, 0))
    if isinstance(sample, QuarantinedSample):
        assert sample.reason.strip()
        return sample.reason
    (batch,) = loader.dataset.batcher.batches([sample], loader.renderer.special_ids)
    tensors = [batch[name] for name in ("pixel_values", "pixel_values_videos") if name in batch]
    tensors += [rows["values"] for rows in batch["sensors"].values()]
    assert all(bool(tensor.isfinite().all()) for tensor in tensors)
    return None


RECORDS = [encode(next(_scenes(index))) for index in (0, 1)]
JUNK: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, "", "x", "<|box|>", "é\x00", -1, 0, 3, 1 << 70, float("nan"), float("inf"), [], [None], [1, 2], {}]
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path in nested facts."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path] * bool(path) + [place for key, value in children for place in places(value, (*path, key))]


def spoil(tree: Any, data: st.DataObject) -> None:
    """Removes one place of nested facts, or puts junk there."""
    *parents, last = data.draw(st.sampled_from(places(tree)))
    for key in parents:
        tree = tree[key]
    if data.draw(st.booleans()):
        del tree[last]
    else:
        tree[last] = data.draw(JUNK)


@pytest.mark.attack("archive", "a record with facts of any value", "trained or quarantined")
@fuzz(25)
@given(st.data())
def test_facts_of_any_value(loader: StepLoader, data: st.DataObject) -> None:
    record = copy.deepcopy(data.draw(st.sampled_from(RECORDS)))
    tree = {name: record.pop(name) for name in ("schema", "id", "kind", "facts")}
    spoil(tree, data)
    outcome(loader, record | tree, data.draw(st.integers(0, 7)))


@pytest.mark.attack("archive", "a record with arrays of any shape, type and value", "trained or quarantined")
@fuzz(25)
@given(st.data())
def test_arrays_of_any_shape_type_and_value(loader: StepLoader, data: st.DataObject) -> None:
    record = copy.deepcopy(data.draw(st.sampled_from(RECORDS)))
    arrays = load(record["arrays"])
    name = data.draw(st.sampled_from(sorted(arrays)))
    array = arrays[name]
    change = data.draw(st.sampled_from(["value", "all", "empty", "cut", "flat", "axis", "type", "absent"]))
    if change in ("value", "all") and array.size:
        value = data.draw(st.sampled_from([0.0, -1.0, 1e30, -1e30, np.nan, np.inf]))
        array = array.astype(np.float64)
        array[...] = value if change == "all" else array
        array.flat[data.draw(st.integers(0, array.size - 1))] = value
    elif change == "type":
        array = array.astype(data.draw(st.sampled_from([np.float16, np.int8, np.uint64, np.bool_, np.int64])))
    elif change != "absent":
        forms = {"empty": array[:0], "cut": array[:-1], "flat": array.ravel(), "axis": array[None]}
        array = forms.get(change, array)
    if change == "absent":
        del arrays[name]
    else:
        arrays[name] = np.ascontiguousarray(array)
    record["arrays"] = save(arrays)
    outcome(loader, record, data.draw(st.integers(0, 7)))


@pytest.mark.attack("archive", "a record with bytes cut or flipped", "trained or quarantined")
@fuzz(25)
@given(st.data())
def test_bytes_cut_or_flipped(loader: StepLoader, data: st.DataObject) -> None:
    """Also within images and clips, whose bytes the facts count."""
    record = copy.deepcopy(data.draw(st.sampled_from(RECORDS)))
    column = data.draw(st.sampled_from(["arrays", "frames"]))
    content = bytearray(record[column])
    at = data.draw(st.integers(0, len(content) - 1))
    how = data.draw(st.sampled_from(["cut", "zeros", "flip"]))
    if how == "cut":
        content = content[:at]
    elif how == "zeros":
        content[at:] = bytes(len(content) - at)
    else:
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    record[column] = bytes(content)
    outcome(loader, record)


# Images


def _png(mode: str = "RGB", size: tuple[int, int] = (128, 96), **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, options.pop("format", "PNG"), **options)
    return file.getvalue()


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def _seen(loader: StepLoader, image: bytes) -> str | None:
    intrinsic = np.array([[90.0, 0.0, 64.0], [0.0, 90.0, 48.0], [0.0, 0.0, 1.0]])
    camera = Camera("front", (image,), np.zeros(1), intrinsic, np.eye(4), 128, 96)
    return outcome(loader, encode(dataclasses.replace(next(_scenes(0)), cameras=(camera,))))


@pytest.mark.fault("grey levels of 16 bits")
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_images_of_any_known_range_are_converted(mode: str, loader: StepLoader) -> None:
    assert _seen(loader, _png(mode)) is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation: int, loader: StepLoader) -> None:
    lying = orientation >= 5
    turned = _png(size=(96, 128) if lying else (128, 96), format="JPEG", exif=_exif(orientation))
    assert _seen(loader, turned) is None
    assert (_seen(loader, _png(format="JPEG", exif=_exif(orientation))) is not None) == lying


def test_a_cmyk_jpeg_is_converted(loader: StepLoader) -> None:
    assert _seen(loader, _png("CMYK", format="JPEG")) is None


@pytest.mark.fault("a picture that is none")
@pytest.mark.attack("archive", "images that are cut, lie about their size or unpack to gigabytes", "quarantined")
@pytest.mark.guarantee(
    "A sample that cannot be used is quarantined with its reason; a share above `data.quarantine.limit` ends the run"
)
@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "neither JPEG nor PNG"),
        (b"\xff\xd8", "unreadable image"),
        (_png()[:-40], "unreadable image"),
        (_png(format="JPEG")[:300], "unreadable image"),
        (_png(format="GIF"), "neither JPEG nor PNG"),
        (_png(size=(640, 480)), "640 x 480 pixels upright, the camera has 128 x 96"),
        (_png("1", (12000, 12000)), "144000000 pixels|12000 x 12000 pixels, more than"),
        (_png("1", (10000, 1)), "no picture is so long"),
        (_png(save_all=True, append_images=[Image.new("RGB", (128, 96), "red")]), "an animation of 2 frames"),
        (_png().replace(b"IHDR\x00\x00\x00\x80", b"IHDR\x00\x10\x00\x00"), "unreadable|more than|so long"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images_that_are_no_pictures_are_quarantined_by_reason(image: bytes, reason: str, loader: StepLoader) -> None:
    assert re.search(reason, _seen(loader, image) or "")


# Shards and indices


def _without_hashes(shards: Path, to: Path) -> Path:
    """The stream uncompressed, whose index cannot tell damage of the same size."""
    write_shards(Work([0, 1], _scenes), to, quiet=True)
    index = json.loads((to / "index.json").read_text())
    from streaming.base.compression import decompress

    for shard in index["shards"]:
        packed, raw = to / shard["zip_data"]["basename"], to / shard["raw_data"]["basename"]
        raw.write_bytes(decompress(shard["compression"], packed.read_bytes()))
        shard |= {"zip_data": None, "compression": None, "hashes": []}
        shard["raw_data"]["hashes"] = {}
    (to / "index.json").write_text(json.dumps(index))
    return to


@pytest.fixture(scope="module")
def bare(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _without_hashes(shards, tmp_path_factory.mktemp("bare") / "shards")


@pytest.mark.attack("archive", "a shard cut or flipped anywhere", "read or quarantined")
@fuzz(25)
@given(st.data())
@pytest.mark.slow
def test_shards_cut_or_flipped_anywhere(bare: Path, processor: Any, tmp_path_factory: Any, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("shards")
    stream = Path(shutil.copytree(bare, folder / "stream"))
    (shard,) = stream.rglob("*.mds")
    content = bytearray(shard.read_bytes())
    places = st.one_of(st.integers(0, 60), st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[: data.draw(places)]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(places)] ^= 1 << data.draw(st.integers(0, 7))
    shard.write_bytes(bytes(content))
    loader = _loader(stream, processor, folder, corrupt_shards="quarantine")
    for number in range(2):
        sample = loader.sample(Address(0, 0, number))
        assert not isinstance(sample, QuarantinedSample) or sample.reason.strip()
    shutil.rmtree(folder)


@pytest.mark.attack("archive", "an index that lies", "read, or refused by name")
@fuzz(25)
@given(st.data())
@pytest.mark.slow
def test_indices_that_lie(bare: Path, processor: Any, tmp_path_factory: Any, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("index")
    stream = Path(shutil.copytree(bare, folder / "stream"))
    index = json.loads((stream / "index.json").read_text())
    spoil(index, data)
    (stream / "index.json").write_text(json.dumps(index))
    refused = ""
    try:
        loader = _loader(stream, processor, folder, corrupt_shards="quarantine")
        for number in range(min(4, loader.mixture.orders[0].total)):
            sample = loader.sample(Address(0, 0, number))
            assert not isinstance(sample, QuarantinedSample) or sample.reason.strip()
    except SceneError as error:  # a stream that cannot be read at all ends the run
        refused = str(error)
    assert not refused or str(stream) in refused, "it is named"
    shutil.rmtree(folder)


# The loop


def _half_broken(index: int) -> Iterator[Scene]:
    scene = next(_scenes(2 * index))
    wide = dataclasses.replace(scene.cameras[0], frames=(_png("L", (4000, 10)),), width=4000, height=10)
    wide = dataclasses.replace(wide, intrinsic=np.array([[900.0, 0, 2000], [0, 900.0, 5], [0, 0, 1]]))
    yield dataclasses.replace(scene, cameras=(wide,)) if index % 2 else scene


@pytest.mark.guarantee(
    "A sample that cannot be used is quarantined with its reason; a share above `data.quarantine.limit` ends the run"
)
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.fast_cases(1)
def test_a_share_beyond_the_limit_ends_the_run_and_one_within_does_not(
    workers: int, processor: Any, tmp_path: Path
) -> None:
    write_shards(Work(list(range(8)), _half_broken), tmp_path / "shards", quiet=True)
    trained = {0.3: 0, 0.6: 0}
    ended = {}
    for limit in trained:
        policy = QuarantinePolicy(limit, min_samples=8)
        loader = _loader(tmp_path / "shards", processor, tmp_path / str(limit), workers=workers, quarantine=policy)
        try:
            for step in loader:
                trained[limit] += sum(len(batch["sample_ids"]) for batch in step if (batch["labels"] != -100).any())
                if loader.quarantine.drawn >= 16:
                    break
        except SceneError as error:
            ended[limit] = str(error)
        lines = (tmp_path / str(limit) / "refused.rank-0.jsonl").read_text().splitlines()
        assert len(lines) == len(loader.quarantine)
        loader.close()
    assert list(ended) == [0.3]
    assert "data.quarantine.limit allows a share of 0.3" in ended[0.3]
    assert "no picture is so long" in ended[0.3]
    assert trained[0.6] == 8
