"""The classes of an exported folder: the backbone of `transformers` with sensors.

`framework.model.standalone` writes this module, with the encoders of a model, as the one file of code that the folder
needs. It therefore uses nothing but torch, numpy, transformers and what it brings along.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration as Backbone
from transformers import Qwen3VLProcessor
from transformers.image_utils import load_image
from transformers.utils import is_torchvision_available, is_vision_available
from transformers.utils.hub import cached_file

from framework.model.sensor_tokens import insert_features
from framework.scene.still import scaled_down, shown_frames, upright_rgb

SENSORS_FILE = "sensors/encoders.safetensors"
"""File of the encoders' weights, in a folder of its own: servers load every file of weights next to the backbone's."""


class LanguageActionForConditionalGeneration(Backbone):
    """The backbone, which also reads sensors: `forward` and `generate` take `sensors`, as the processor returns them.

    Args:
        config: The backbone's configuration. Its `sensors` give, by name, each encoder's class, arguments, and the id
            of its placeholder.
    """

    _keys_to_ignore_on_load_missing = [r"^encoders\."]  # noqa: RUF012  # transformers' own form

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        facts = config.sensors
        self.encoders = nn.ModuleDict({name: globals()[of["class"]](**of["arguments"]) for name, of in facts.items()})

    @classmethod
    def from_pretrained(cls, folder: Any, *arguments: Any, **options: Any) -> Any:
        """See `transformers`. The encoders' weights come from `SENSORS_FILE`: plain loaders refuse tensors that the
        backbone lacks.
        """
        loaded = super().from_pretrained(folder, *arguments, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        found = {name: options[name] for name in ("revision", "cache_dir", "token", "subfolder") if name in options}
        model.encoders.load_state_dict(load_file(cached_file(folder, SENSORS_FILE, **found)))
        model.encoders.to(model.device, model.dtype)
        return loaded

    def forward(
        self, input_ids: Tensor | None = None, sensors: Mapping[str, Mapping[str, Tensor]] | None = None, **inputs: Any
    ) -> Any:
        """See `transformers`.

        Args:
            input_ids: Token ids, `(b, t)`.
            sensors: By name `values` `(m, rows, channels)` float32 and `mask` `(m, rows)` bool of the `m` samples that
                have the sensor. Read where the prompt is, not with the tokens that follow it from a cache.
            inputs: What the backbone takes.

        Raises `ValueError` for a sensor without an encoder, and where placeholders do not match.
        """
        cache = inputs.get("past_key_values", inputs.get("cache"))
        if not sensors or input_ids is None or (cache is not None and cache.get_seq_length()):
            return super().forward(input_ids=input_ids, **inputs)
        if unknown := sorted(set(sensors) - set(self.encoders)):
            raise ValueError(f"sensors: {', '.join(unknown)} have no encoder; there are: {', '.join(self.encoders)}")

        def insert(module: nn.Module, given: tuple[Tensor, ...], embeddings: Tensor) -> Tensor:
            hook.remove()
            for name, encoder in self.encoders.items():
                if name in sensors:
                    values, mask = (sensors[name][key].to(embeddings.device) for key in ("values", "mask"))
                    features, keep = encoder(values, mask)
                    token = self.config.sensors[name]["token_id"]
                    embeddings = insert_features(embeddings, given[0], token, name, features, keep)
            return embeddings

        hook = self.get_input_embeddings().register_forward_hook(insert)
        try:
            return super().forward(input_ids=input_ids, **inputs)
        finally:
            hook.remove()


def _with_sensors(forward: Any) -> inspect.Signature:
    """The signature of the backbone's `forward` with `sensors`."""
    signature = inspect.signature(forward)
    *named, options = signature.parameters.values()
    sensors = inspect.Parameter("sensors", inspect.Parameter.KEYWORD_ONLY, default=None)
    return signature.replace(parameters=[*named, sensors, options])


# `generate` refuses arguments that the signature of `forward` does not name.
LanguageActionForConditionalGeneration.forward.__signature__ = _with_sensors(Backbone.forward)  # type: ignore[attr-defined]


class LanguageActionProcessor(Qwen3VLProcessor):
    """The backbone's processor, which also takes sensors, and shows pictures as training does.

    Args:
        image_processor: See `transformers`.
        tokenizer: See `transformers`.
        video_processor: See `transformers`.
        chat_template: See `transformers`.
        sensors: By name each sensor's placeholder (`token`), the `tokens` that stand for a sample (None: one for each
            row), and the `channels` of a row.
        image_width: Pixels to which wider pictures, and frames of clips, are scaled down; None keeps them.
        video_frames: Frames shown of a clip, evenly spaced up to its newest; None shows all.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        video_processor: Any = None,
        chat_template: Any = None,
        sensors: Mapping[str, Mapping[str, Any]] | None = None,
        image_width: int | None = None,
        video_frames: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, video_processor, chat_template=chat_template, **options)
        self.sensors = sensors or {}
        self.image_width = image_width
        self.video_frames = video_frames

    @classmethod
    def _get_arguments_from_pretrained(cls, folder: Any, *arguments: Any, **options: Any) -> list[Any]:
        """See `transformers`. Without Pillow and torchvision nothing reads pictures; text and sensors need neither."""
        if is_vision_available() and is_torchvision_available():
            return super()._get_arguments_from_pretrained(folder, *arguments, **options)
        return [None, cls._load_tokenizer_from_pretrained("tokenizer", folder, **options), None]

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """See `transformers`."""
        return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)

    def __call__(
        self, images: Any = None, text: Any = None, videos: Any = None,
        sensors: Sequence[Mapping[str, np.ndarray]] | None = None, **options: Any,
    ) -> Any:  # fmt: skip
        """See `transformers`.

        Args:
            images: Pictures, in the order of the texts: Pillow's, files, addresses, or RGB arrays of bytes.
            text: One prompt or several. Each holds the placeholder of each of its sensors once.
            videos: Clips, in the order of the texts, each the list of its frames.
            sensors: For each prompt the rows `(n, channels)` of each of its sensors, in the ego frame and SI units.
            options: What the backbone's processor takes.

        Raises `ValueError` for a sensor that there is not, rows of another shape or that are not finite, a prompt
        without the sensor's placeholder, one with the placeholder of a sensor that has no rows, and what cannot be
        shown as in training: encoded clips and tensors where there is an `image_width`, grey of 32 bits or floats, and
        where `video_frames` leaves frames out, a clip without `video_metadata`. Raises `ImportError` for pictures and
        clips where Pillow or torchvision is missing.
        """
        if self.image_processor is None and (images is not None or videos is not None):
            given = "videos" if images is None else "images"
            raise ImportError(
                f"{given}: the processor reads them with Pillow and torchvision; install both, and load it again"
            )
        images, videos = self._shown(images), self._shown(videos, of_clips=True)
        if videos is not None and self.video_frames is not None:
            videos, options = self._limited(videos, options)
        prompts = [text] if isinstance(text, str) else list(text or [])
        if not sensors:
            for prompt in prompts:
                self._with_placeholders(prompt, {})
            return super().__call__(images=images, text=text, videos=videos, **options)
        if len(prompts) != len(sensors):
            raise ValueError(f"sensors: of {len(sensors)} prompts, there are {len(prompts)}; give one dict for each")
        prompts = [self._with_placeholders(prompt, rows) for prompt, rows in zip(prompts, sensors, strict=True)]
        inputs = super().__call__(images=images, text=prompts, videos=videos, **options)
        inputs["sensors"] = {
            name: _padded([rows[name] for rows in sensors if name in rows])
            for name in self.sensors
            if any(name in rows for rows in sensors)
        }
        return inputs

    def _shown(self, given: Any, of_clips: bool = False) -> Any:
        """Pictures, nested as they are `given`, upright, in RGB, and no wider than `image_width`."""
        if given is None:
            return None
        if isinstance(given, (list, tuple)):
            return [self._shown(each, of_clips) for each in given]
        if isinstance(given, np.ndarray) and given.dtype == np.uint8 and given.shape[-1] == 3:
            if given.ndim > 3:
                return [self._shown(each) for each in given]
            given = Image.fromarray(given)
        if isinstance(given, str) and not of_clips:
            # A Path would raise where the text is a picture in base 64, longer than any name.
            given = Image.open(given) if os.path.isfile(given) else load_image(given)  # noqa: PTH113
        if isinstance(given, Image.Image):
            return scaled_down(upright_rgb(given), self.image_width)
        if self.image_width is not None:
            raise ValueError(
                f"{'videos' if of_clips else 'images'}: cannot scale a {type(given).__name__} to {self.image_width} "
                "pixels as training did; give pictures, of a clip the list of its frames"
            )
        return given

    def _limited(self, videos: Any, options: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The clips, with as many frames as training shows, and the options with the times of these."""
        clips, of_videos = _clips(videos), dict(options.get("videos_kwargs") or {})
        given = options.get("video_metadata", of_videos.get("video_metadata"))
        times = given if isinstance(given, (list, tuple)) else [given] * len(clips)
        limited, metadata = [], []
        for clip, facts in zip(clips, times, strict=True):
            frames = shown_frames(len(clip), self.video_frames)
            facts = dict(facts or {})
            if len(frames) < len(clip):
                if self.video_frames == 1 or len(facts.get("frames_indices") or ()) != len(clip):
                    remedy = (
                        "training shows the newest frame of a clip alone: give it as a picture"
                        if self.video_frames == 1
                        else "video_metadata gives no frames_indices of these: without them no frame has a time"
                    )
                    raise ValueError(
                        f"videos: a clip of {len(clip)} frames, of which {len(frames)} are shown; {remedy}"
                    )
                ticks = [facts["frames_indices"][frame] - facts["frames_indices"][frames[0]] for frame in frames]
                facts |= {"frames_indices": ticks, "total_num_frames": ticks[-1] + 1}
            limited.append([clip[frame] for frame in frames])
            metadata.append(facts or None)
        known = {} if None in metadata else {"video_metadata": metadata}
        rest = {name: value for name, value in options.items() if name != "video_metadata"}
        return limited, rest | {"videos_kwargs": {"do_sample_frames": False} | of_videos | known}

    def _with_placeholders(self, prompt: str, sensors: Mapping[str, np.ndarray]) -> str:
        """The prompt with as many placeholders as the encoders make tokens."""
        for name, rows in sensors.items():
            if name not in self.sensors:
                raise ValueError(f"sensors: there is no {name}; there are: {', '.join(self.sensors)}")
            token, tokens, channels = (self.sensors[name][key] for key in ("token", "tokens", "channels"))
            values = np.asarray(rows)
            if values.ndim != 2 or values.shape[1] != channels or not len(values) or not np.isfinite(values).all():
                raise ValueError(f"sensors: {name} has shape {values.shape}; give finite rows (n, {channels}), n > 0")
            if prompt.count(token) != 1:
                raise ValueError(f"text: holds {prompt.count(token)} times {token}; put it once where {name} belongs")
            prompt = prompt.replace(token, token * (tokens or len(values)))
        for name, of in self.sensors.items():
            if name not in sensors and of["token"] in prompt:
                raise ValueError(
                    f"text: holds {of['token']}, but there are no rows of {name}; give them, or leave it out"
                )
        return prompt


def _clips(videos: Any) -> list[Any]:
    """The clips among videos that may be nested by prompt: lists whose entries are frames."""
    if not isinstance(videos, list) or not videos or not isinstance(videos[0], list):
        return [videos]
    return [clip for each in videos for clip in _clips(each)]


def _padded(samples: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """The rows of several samples, padded with zeros."""
    rows = [torch.as_tensor(np.asarray(sample), dtype=torch.float32) for sample in samples]
    masks = [torch.ones(len(sample), dtype=torch.bool) for sample in rows]
    pad = nn.utils.rnn.pad_sequence
    return {"values": pad(rows, batch_first=True), "mask": pad(masks, batch_first=True)}
