"""Dialogues have the token ids of the processor's own `apply_chat_template`, and the labels of its assistant mask."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from framework.data.render.chat import ChatRenderer
from framework.data.render.dialogue import messages_of
from framework.data.render.outline import OutlineRenderer
from framework.data.render.sample import Rendered
from framework.data.render.tasks import Converse, Learned
from framework.data.shards.statistics import outline
from framework.model.backbone import RandomBackbone
from framework.scene.batch import IGNORE_INDEX
from framework.scene.check import check_scene
from framework.scene.dialogue import Dialogue
from framework.scene.types import SceneError
from tests.data.render.templates import QWEN3_5, QWEN3_VL, QWEN3_VL_TAGGED
from tests.dialogues import dialogue, film, picture, scene_of

TEXTS = {
    "umlauts": "Grüße aus Zürich, ß ÄÖÜ",
    "japanese": "日本語のテスト。改行\nあり",
    "arabic": "مرحبا بالعالم",
    "emoji": "🚗🚦👩\u200d🚀🇨🇭",
    "combining": "e\u0301a\u0308 vs. éä",
    "zero width": "a\u200bb\ufeffc",
    "spaces": "  two  spaces \t and a tab\t",
    "leading line breaks": "\n\nlate",
    "one leading line break": "\nlate",
    "trailing line breaks": "early\n\n",
    "a break and spaces": " \n  indented",
    "carriage returns": "one\r\ntwo\rthree",
    "markup": "<b>bold</b> &amp; <i><b>nested</b></i>",
    "jinja": "{{ messages }} {% if x %}{# no #}{% endif %}",
    "code": "```python\nprint('<|x|>', \"\\n\")\n```",
    "boxes": '[{"bbox_2d": [0, 120, 1000, 333], "label": "car"}]',
    "thinking": "<think>\nhm\n</think>\n\nYes.",
    "a call": '<tool_call>\n{"name": "f"}\n</tool_call>',
    "a role": "assistant\nuser\nsystem",
    "nearly a token": "<|im_start | im_end|> <|im_start <||> |im_end|>",
    "placeholders": "<image> and <video> are tags here",
    "formula": "$\\frac{a}{b} \\neq \\sum_i x^{i}$",
    "digits": "0 12 345 6789 1e-3 -0.5",
    "long": "word " * 60,
    "one letter": "a",
    "nul": "a\x00b",
    "right to left marks": "\u202eabc\u202c \u200fשלום\u200e",
    "families and flags": "👨\u200d👩\u200d👧\u200d👦🏴\U000e0067\U000e0062\U000e007f",
    "separators": "a\x0b\x0c\x1c\x85\u2028\u2029b",
    "a byte order mark": "\ufeffbegin",
    "private and unassigned": "\ue000\U0010ffff",
    "wide spaces": "\u00a0\u3000between\u3000\u00a0",
    "a tool's answer": "<tool_response>\n{}\n</tool_response>",
    "half a thought": "<think>\nnever ends",
    "an ended thought": "never began\n</think>\n\nYes.",
    "pixels": '[{"bbox_2d": [-4, 10.5, 1600, 900], "label": "<image>"}]',
}
BRIEF = ("system", "Be brief.")
PLAIN = {
    **{f"text: {name}": dialogue(("user", text), ("assistant", text)) for name, text in TEXTS.items()},
    "system": dialogue(BRIEF, ("user", "Hi."), ("assistant", "Hello.")),
    "empty system": dialogue(("system", ""), ("user", "Hi."), ("assistant", "Hello.")),
    "odd system": dialogue(("system", "\n {{x}} ü"), ("user", "Hi."), ("assistant", "Hello.")),
    "two exchanges": dialogue(("user", "1?"), ("assistant", "One."), ("user", "2?"), ("assistant", "Two.")),
    "six exchanges": dialogue(*[(role, f"{role} {n}") for n in range(6) for role in ("user", "assistant")]),
    "two users": dialogue(("user", "I ask."), ("user", "And ask."), ("assistant", "Yes.")),
    "two answers": dialogue(("user", "I ask."), ("assistant", "Yes."), ("assistant", "And no.")),
    "odd turns": dialogue(BRIEF, ("user", "a"), ("user", "b"), ("assistant", "c"), ("assistant", "d"), ("user", "e"),
                          ("assistant", "\nf")),
    "empty system, two users": dialogue(("system", ""), ("user", "a"), ("user", "b"), ("assistant", "c")),
    "empty parts": dialogue(("user", ["", "a", "", "\n"]), ("assistant", ["", "b", ""])),
    "parts": dialogue(("user", ["One ", "and", " two."]), ("assistant", ["Thr", "ee", "."])),
}  # fmt: skip
SHOWN = {
    "image first": dialogue(("user", [picture(1), "\nWhat is it?"]), ("assistant", "Noise.")),
    "image last": dialogue(("user", ["What is it?\n", picture(2)]), ("assistant", "Noise.")),
    "image between": dialogue(("user", ["Is ", picture(3), " noise?"]), ("assistant", "It is.")),
    "image alone": dialogue(("user", [picture(4)]), ("assistant", "Noise.")),
    "two images": dialogue(("user", [picture(5), picture(6, (96, 64)), "Same?"]), ("assistant", "No.")),
    "images apart": dialogue(("user", ["A ", picture(7), " B ", picture(8), " C"]), ("assistant", "D")),
    "six images": dialogue(("user", [*[picture(n) for n in range(6)], "Count."]), ("assistant", "Six.")),
    "image later": dialogue(("user", "Hi."), ("assistant", "Hello."), ("user", [picture(9), "?"]), ("assistant", "!")),
    "image each turn": dialogue(*[
        turn for n in range(3) for turn in [("user", [picture(n), f"{n}?"]), ("assistant", f"{n}.")]
    ]),
    "system and image": dialogue(BRIEF, ("user", [picture(10), "ü?"]), ("assistant", "ü.")),
    "narrow image": dialogue(("user", [picture(11, (32, 128)), "High?"]), ("assistant", "Yes.")),
    "tiny image": dialogue(("user", [picture(12, (3, 5)), "Small?"]), ("assistant", "Yes.")),
    "large image": dialogue(("user", [picture(13, (400, 300)), "Large?"]), ("assistant", "Yes.")),
    "image and boxes": dialogue(("user", [picture(14), "Where?"]), ("assistant", TEXTS["boxes"])),
    "unicode around": dialogue(("user", ["前", picture(15), "後"]), ("assistant", "\n🚗")),
    "video": dialogue(("user", [film(1), "What moves?"]), ("assistant", "Nothing.")),
    "odd frames": dialogue(("user", [film(2, 5), "What moves?"]), ("assistant", "Nothing.")),
    "fast video": dialogue(("user", ["See ", film(3, 6, rate_hz=10.0), "."]), ("assistant", "Seen.")),
    "two videos": dialogue(("user", [film(4), "or", film(5, 2, (96, 64))]), ("assistant", "Both.")),
    "ten images": dialogue(("user", [*[picture(n, (32 + 8 * n, 40)) for n in range(10)], "?"]), ("assistant", "10")),
    "images and videos among texts": dialogue(
        ("user", ["a", picture(20), "b", film(20, 3), "c", picture(21, (96, 40)), "d", film(21), "e"]),
        ("assistant", "f"), ("user", ["\n", film(22, 2), "\n"]), ("assistant", "g")),
    "video and image": dialogue(("user", [film(6), picture(16), "?"]), ("assistant", "!")),
    "image and video": dialogue(("user", [picture(17), film(7), "?"]), ("assistant", "!"), ("user", [picture(18)]),
                                ("assistant", "\n\n.")),
    "video later": dialogue(BRIEF, ("user", "a"), ("user", [film(8)]), ("assistant", "b"), ("assistant", "c")),
}  # fmt: skip
ALL = PLAIN | SHOWN


@pytest.fixture(scope="module")
def processor() -> Any:
    """With the template of the repository's tiny processor."""
    return RandomBackbone({}).processor([])


def _with(template: str) -> Any:
    processor = RandomBackbone({}).processor([])
    processor.chat_template = template
    return processor


@pytest.fixture(scope="module")
def released() -> Any:
    """With a template that behaves as Qwen3-VL's."""
    return _with(QWEN3_VL)


def render(processor: Any, talk: Dialogue, learn: Learned = "all", cut: bool = False, **limits: Any) -> Rendered:
    scene = scene_of(talk)
    renderer = ChatRenderer(processor, {}, **{"max_length": 1 << 16} | limits)
    return renderer.render(scene, Converse(learn, cut).conversation(scene, "draw"))


def oracle(processor: Any, talk: Dialogue, template: str | None = None, **asked: Any) -> Any:
    """What transformers makes of the messages, with their pixels."""
    views = [ChatRenderer(processor, {}, 1 << 16).view("", medium) for medium in talk.media]
    messages = messages_of(talk, ["video" if medium.is_video else "image" for medium in talk.media])
    left = iter(views)
    for part in [part for message in messages for part in message["content"] if part["type"] != "text"]:
        view = next(left)
        part[part["type"]] = view.images if view.is_clip else view.images[0]
    metadata = [view.metadata for view in views if view.is_clip]
    kwargs = {"do_sample_frames": False, "video_metadata": [metadata]} if metadata else {}
    return processor.apply_chat_template(
        messages, chat_template=template, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs=kwargs,
        **asked,
    )  # fmt: skip


def test_there_are_at_least_fifty_and_all_are_sound() -> None:
    assert len(ALL) >= 50
    assert {name: check_scene(scene_of(talk)) for name, talk in ALL.items()} == {name: [] for name in ALL}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.fast_cases(20)
def test_ids_and_masks_are_those_of_transformers(processor: Any, released: Any, name: str) -> None:
    talk = ALL[name]
    for reader in (processor, released):
        rendered, expected = render(reader, talk), oracle(reader, talk)
        assert rendered.input_ids.tolist() == expected["input_ids"][0].tolist()
        for key, values in rendered.media.items():
            torch.testing.assert_close(values, expected[key], rtol=0, atol=0)
    tagged = oracle(released, talk, QWEN3_VL_TAGGED, return_assistant_tokens_mask=True)
    mask = torch.as_tensor(tagged["assistant_masks"])[0].bool()
    assert mask.any()
    assert tagged["input_ids"].equal(expected["input_ids"])
    assert (rendered.labels != IGNORE_INDEX).equal(mask)
    assert rendered.labels[mask].equal(rendered.input_ids[mask])
    last = len(oracle(released, talk.first(len(talk.turns) - 1), add_generation_prompt=True)["input_ids"][0])
    learned = render(released, talk, "last").labels != IGNORE_INDEX
    # Of a token that holds the header's line break and the answer's first the prefix ends within.
    assert learned[last:].equal(mask[last:])
    assert not learned[: last - 1].any()


@pytest.mark.parametrize("name", ["six exchanges", "odd turns", "image each turn", "video later", "text: thinking"])
def test_a_template_whose_prefixes_differ_is_rendered_as_a_whole(name: str) -> None:
    reader = _with(QWEN3_5)
    rendered, expected = render(reader, ALL[name]), oracle(reader, ALL[name], return_assistant_tokens_mask=True)
    assert rendered.input_ids.tolist() == expected["input_ids"][0].tolist()
    assert (rendered.labels != IGNORE_INDEX).tolist() == [bool(one) for one in expected["assistant_masks"][0]]


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|image_pad|>", "<|vision_start|>", "<|lidar|>"])
def test_a_control_token_is_refused_also_in_pieces(processor: Any, token: str, role: str) -> None:
    said: dict[str, Any] = {"system": "Be brief.", "user": "Hi.", "assistant": "Hello."}
    for content in (f"a{token}b", [token[:4], token[4:]]):
        talk = dialogue(*{**said, role: content}.items())
        with pytest.raises(SceneError, match=r"scene talk: turn \d holds the control token <\|.*; remove it"):
            render(processor, talk)


def test_a_long_dialogue_is_refused_or_cut_at_whole_exchanges(processor: Any) -> None:
    talk = ALL["image each turn"]
    lengths = [len(render(processor, talk.first(turns)).input_ids) for turns in (2, 4, 6)]
    with pytest.raises(SceneError, match=f"scene talk: {lengths[2]} tokens, data.max_length is {lengths[2] - 1}: "):
        render(processor, talk, max_length=lengths[2] - 1)
    for limit, turns in ((lengths[2], 6), (lengths[2] - 1, 4), (lengths[1], 4), (lengths[1] - 2, 2), (lengths[0], 2)):
        for learn in ("all", "last"):
            cut, short = (
                render(processor, talk, learn, True, max_length=limit),
                render(  # type: ignore[arg-type]
                    processor,
                    talk.first(turns),
                    learn,  # type: ignore[arg-type]
                ),
            )
            assert cut.input_ids.equal(short.input_ids)
            assert cut.labels.equal(short.labels)
            assert len(cut.media["image_grid_thw"]) == turns // 2
    with pytest.raises(SceneError, match="the first exchange fits"):
        render(processor, talk, cut=True, max_length=lengths[0] - 2)


def test_a_template_of_another_form_is_refused() -> None:
    other = _with("{% for message in messages %}{{ message.role }}: {{ message.content[0].text }}\n{% endfor %}")
    with pytest.raises(SceneError, match="scene talk: the backbone's chat template does not render each turn"):
        render(other, PLAIN["system"])


def test_an_unreadable_picture_is_named(processor: Any) -> None:
    talk = ALL["two images"]
    broken = dataclasses.replace(talk.media[1], frames=(talk.media[1].frames[0][:90],))
    with pytest.raises(SceneError, match="scene talk: medium 1: frame 0: unreadable image"):
        render(processor, dataclasses.replace(talk, media=(talk.media[0], broken)))


def test_for_generation_the_last_answer_is_left_out(processor: Any) -> None:
    scene = scene_of(ALL["image each turn"])
    renderer = ChatRenderer(processor, {}, 1 << 16)
    prompt = renderer.render(scene, Converse().conversation(scene, ""), for_generation=True)
    expected = oracle(processor, ALL["image each turn"].first(5), add_generation_prompt=True)
    assert prompt.input_ids.tolist() == expected["input_ids"][0].tolist()
    assert (prompt.labels == IGNORE_INDEX).all()


@pytest.mark.parametrize("name", ["six exchanges", "images apart", "image each turn", "image and video", "two videos"])
def test_an_outline_counts_the_same_tokens(processor: Any, name: str) -> None:
    scene = scene_of(ALL[name])
    sketch = outline(scene)
    assert sketch.dialogue is not None
    assert not any(medium.frames for medium in sketch.dialogue.media)
    counted = OutlineRenderer(processor, {}, 1 << 16).render(sketch, Converse().conversation(sketch, ""))
    rendered = render(processor, ALL[name])
    assert counted.input_ids.equal(rendered.input_ids)
    assert counted.labels.equal(rendered.labels)
    assert {k: v.shape for k, v in counted.media.items()} == {k: v.shape for k, v in rendered.media.items()}
