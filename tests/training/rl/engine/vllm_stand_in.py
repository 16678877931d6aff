"""A server that speaks as much of vLLM 0.32 as the engine needs, around the same model, in a thread of the test.

It holds other weights until it is told to load some, and has faults on demand. Where vLLM is installed, the engine is
tested with the real one (`test_vllm_server.py`).
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgpack
import torch
from safetensors.torch import load_file
from torch import Tensor

from framework.generation.vllm_worker.weight_stream import WeightStream
from framework.model.codecs.grammar import GrammarMatchers
from framework.model.language_action import LanguageActionModel
from framework.training.rl.engine.vllm import EMPTY_CHECKSUM
from framework.training.rl.engine.weight_transfer import ENCODERS, digest, served_name


def weights_of(model: LanguageActionModel) -> list[tuple[str, Tensor]]:
    """What a run gives to its engine."""
    encoders = model.encoders.state_dict().items()
    return [*model.backbone.state_dict().items(), *((f"{ENCODERS}{name}", tensor) for name, tensor in encoders)]


class StandIn(WeightStream):
    """The server. `fault` names what it does wrong; it is lost after `lives` answers, until somebody looks after its
    health, and has forgotten its weights then.

    `told` is what it was told to do, in order; `refused` what a real one would not have survived or never answered.
    """

    parallel_config = SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)

    def __init__(self, model: LanguageActionModel) -> None:
        self.model = model
        self.tokenizer = model.processor.tokenizer
        self.fault = ""
        self.lives = 10**9
        self.answers = 0
        self.model_name = ""
        self.told: list[str] = []
        self.refused: list[str] = []
        self.lock = threading.Lock()
        self.forget()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._tell({})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                self._tell(json.loads(body) if body else {})

            def _tell(self, body: dict[str, Any]) -> None:
                place, status = urlsplit(self.path), 200
                try:
                    with stand_in.lock:
                        found = stand_in.tell(place.path, body, parse_qs(place.query).get("tags", []))
                except Exception as error:  # as vLLM does
                    found, status = {"error": repr(error)}, 500
                    stand_in.refused.append(repr(error))
                if found is None:
                    self.close_connection = True
                    return
                told = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(told)))
                self.end_headers()
                self.wfile.write(told)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.weight_stream = None  # a group that outlives the interpreter ends it by SIGABRT

    def forget(self) -> None:
        """As a server that has just started."""
        self.version = "default"
        self.asleep: set[str] = set()
        self.weight_stream = None
        with torch.no_grad():
            for weight in (*self.model.backbone.parameters(), *self.model.encoders.parameters()):
                weight.copy_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))

    def tell(self, path: str, body: dict[str, Any], tags: list[str]) -> Any:
        """What is answered; None: the connection breaks."""
        if path == "/health" and self.lives <= 0 and self.fault != "dead":
            self.forget()
            self.lives = 10**9
        if self.lives <= 0:
            return None
        self._note(path, body, tags)
        if path == "/v1/models":
            return {"data": [{"id": self.model_name}]}
        if path == "/get_world_size":
            return {"world_size": 1}
        if path == "/inference/v1/generate":
            return self._generate(body)
        if path == "/collective_rpc" and self.fault == "late":
            return None
        if path == "/collective_rpc":
            return {"results": [getattr(self, body["method"])(**body["kwargs"])]}
        if path == "/update_weight_version" and self.fault != "version":
            self.version = body["new_version"]
        if path == "/weight_checker":
            return {"checksums": self._checksums()}
        return {"weight_version": self.version}

    def _note(self, path: str, body: dict[str, Any], tags: list[str]) -> None:
        """What sleeps, and whether it is asked for."""
        method = body.get("method", "")
        if path not in ("/health", "/v1/models", "/get_world_size", "/weight_info", "/weight_checker"):
            self.told.append(" ".join([method or path, *tags]))
        if path == "/sleep":
            self.asleep = {"weights", "kv_cache"}
        if path == "/wake_up":
            self.asleep -= set(tags) or self.asleep
        weights = method in ("reload_weights", "receive_weights") or path == "/weight_checker"
        if (weights and "weights" in self.asleep) or (path in ("/inference/v1/generate", "/resume") and self.asleep):
            raise RuntimeError(f"{method or path}: asleep are {sorted(self.asleep)}")

    def reload_weights(
        self, weights_path: str | None = None, weights_iterator: Iterable[tuple[str, Tensor]] | None = None
    ) -> None:
        """As a vLLM worker does."""
        if weights_iterator is None:
            files = Path(weights_path or "").glob("*.safetensors")
            weights_iterator = (pair for file in files for pair in load_file(file).items())
        read = dict(weights_iterator)
        if self.fault != "stale":
            own = {name.removeprefix(ENCODERS): tensor for name, tensor in read.items() if name.startswith(ENCODERS)}
            self.model.encoders.load_state_dict(own)
            self.model.backbone.load_state_dict({name: read[name] for name in read if not name.startswith(ENCODERS)})

    def _checksums(self) -> dict[str, str]:
        names = weights_of(self.model)
        made = {f"dp0:pp0:pcp0:tp0:{served_name(name)}": digest(tensor) for name, tensor in names}
        return {
            name: made_of if "norm" in name or "embed" in name else EMPTY_CHECKSUM for name, made_of in made.items()
        }

    @torch.no_grad()
    def _generate(self, body: dict[str, Any]) -> dict[str, Any]:
        self.lives -= 1
        self.answers += 1
        asked = body["sampling_params"]
        prompt, items = body["token_ids"], _items(body["features"])
        draws = torch.Generator().manual_seed(asked["seed"])
        grammar = asked.get("structured_outputs", {}).get("grammar")
        form = GrammarMatchers(self.tokenizer, [grammar], self.model.vocabulary, torch.device("cpu"))
        tokens, logprobs = list[int](), list[float]()
        while len(tokens) < asked["max_tokens"]:
            scores = self._scores([*prompt, *tokens], items) / (asked["temperature"] or 1.0)
            scores[[int(token) for token in asked["logit_bias"]]] = -torch.inf
            if form.done[0]:  # vLLM lets the end of turn follow a complete grammar
                allowed = torch.ones_like(form.banned_mask()[0])
                allowed[form.end] = False
                scores[allowed] = -torch.inf
            else:
                scores[form.banned_mask()[0]] = -torch.inf
            said = scores.log_softmax(dim=-1)
            drawn = torch.multinomial(said.exp(), 1, generator=draws) if asked["temperature"] else said.argmax()
            token = int(drawn)
            tokens.append(token)
            logprobs.append(float(said[token]) * (1.2 if self.fault == "logprobs" else 1.0))
            form.accept(0, token)
            if token == form.end:
                break
        ended = bool(tokens) and tokens[-1] == form.end
        spans = [{"version": self.version, "start": 0, "end": len(tokens)}]
        content = [{"token_id": token, "logprob": value} for token, value in zip(tokens, logprobs, strict=True)]
        choice = {"finish_reason": "stop" if ended else "length", "token_ids": tokens, "weight_versions": spans}
        read = prompt[1:] if self.fault == "tokens" else prompt
        return {"choices": [choice | {"logprobs": {"content": content}}], "prompt_token_ids": read}

    def _scores(self, ids: list[int], items: list[tuple[int, dict[str, Tensor]]]) -> Tensor:
        """Of the next token."""
        config = self.model.backbone.config
        row = torch.tensor([ids])
        row = row.masked_fill(row == config.video_token_id, config.image_token_id)  # a clip's frames come as images
        pictures = [item for _, item in items if "pixel_values" in item]
        batch: Any = {"input_ids": row, "attention_mask": torch.ones_like(row)}
        batch["mm_token_type_ids"] = (row == config.image_token_id).long()
        media = {}
        if pictures:
            media["pixel_values"] = torch.cat([item["pixel_values"] for item in pictures])
            media["image_grid_thw"] = torch.stack([item["image_grid_thw"] for item in pictures])
        embeddings = self.model.backbone.get_input_embeddings()(row).clone()
        for offset, item in items:
            for name, encoder in self.model.encoders.items():
                if f"{name}_values" in item:
                    mask = item[f"{name}_mask"][None]
                    features, keep = encoder(item[f"{name}_values"][None], mask)
                    rows = features[0] if keep is None else features[keep]
                    embeddings[0, offset : offset + len(rows)] = rows
        places = self.model.position_ids(batch | media)
        hidden = self.model.run_backbone(embeddings, batch["attention_mask"], places, media, None)[0]
        return self.model.head(hidden[0, -1]).float()


def _items(told: dict[str, Any] | None) -> list[tuple[int, dict[str, Tensor]]]:
    """What a request shows: places and tensors."""
    if told is None:
        return []
    found = []
    pairs = [
        pair
        for kind in told["kwargs_data"]
        for pair in zip(told["mm_placeholders"][kind], told["kwargs_data"][kind], strict=True)
    ]
    for place, packed in pairs:
        fields = msgpack.unpackb(base64.b64decode(packed))
        tensors = {}
        for name, field in fields.items():
            kind, shape, raw = field["data"]
            tensors[name] = torch.frombuffer(bytearray(raw.data), dtype=getattr(torch, kind)).reshape(shape)
        found.append((place["offset"], tensors))
    return found
