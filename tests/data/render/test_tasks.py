"""What a task asks decodes back to what the scene holds, and tasks share scenes as their weights say."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from framework.data.render.tasks import Answer, Caption, Detect, Drive, choose_task, teaches
from framework.evaluation.detection_score import DetectionScore
from framework.model.codecs.box_tokens import BoxTokenCodec
from framework.model.codecs.boxes import BoxTextCodec
from framework.model.codecs.control_tokens import ControlTokenCodec
from framework.model.codecs.waypoints import WaypointCodec
from framework.scene.codec import ActionCodec
from framework.scene.types import Boxes, Question, Scene
from framework.scene.world.generate import generate_scene
from framework.scene.world.scenarios import KINDS
from tests.model.codecs.reading import accepts
from tests.model.presets import preset

CONTROLS = ControlTokenCodec(**preset("codecs/action/control_tokens.yaml"))
WAYPOINTS = WaypointCodec(**preset("codecs/action/waypoints.yaml"))
BOXES = BoxTextCodec(**preset("codecs/boxes/text.yaml"))
SCENES = [generate_scene(40 + index, kind, rig=None) for index, kind in enumerate(KINDS)]
TASKS: dict[str, Any] = {"drive": Drive(CONTROLS), "detect": Detect(BOXES), "caption": Caption()}
WEIGHTS = {"drive": 0.5, "detect": 0.2, "caption": 0.3}
FIVE = dataclasses.replace(SCENES[0], questions=tuple(Question(f"{n}?", f"answer {n}", "count") for n in range(5)))


@pytest.mark.parametrize("reason", [False, True])
@pytest.mark.parametrize(("codec", "metres"), [(CONTROLS, 0.3), (WAYPOINTS, 0.05 * math.sqrt(2) + 1e-6)])
def test_driving_decodes_to_the_experts_future(codec: ActionCodec, metres: float, reason: bool) -> None:
    task = Drive(codec, reason)
    for scene in SCENES:
        assert task.supports(scene)
        assert scene.future is not None
        decoded = task.decode(task.conversation(scene, "0").answer, scene)
        assert decoded is not None
        away = decoded.states[:, :2] - scene.future.states[:, :2]
        assert np.hypot(away[:, 0], away[:, 1]).max() <= metres, scene.id


def test_a_reason_goes_before_the_action_and_only_where_it_is_wanted() -> None:
    scene = SCENES[3]
    plain, reasoned = (Drive(CONTROLS, reason).conversation(scene, "0") for reason in (False, True))
    assert reasoned.answer == f"{scene.thought}\n{plain.answer}"
    assert scene.thought is not None
    assert scene.thought not in plain.answer + plain.prompt
    assert reasoned.prompt.startswith(plain.prompt)
    assert f"Command: {scene.command}." in plain.prompt
    assert plain.special == reasoned.special == CONTROLS.tokens


def test_a_prompt_without_instructions_asks_the_same_in_fewer_words() -> None:
    scene = SCENES[3]
    for long, brief in (
        (Drive(CONTROLS), Drive(CONTROLS, instruct=False)),
        (Drive(WAYPOINTS, reason=True), Drive(WAYPOINTS, reason=True, instruct=False)),
        (Detect(BOXES), Detect(BOXES, instruct=False)),
    ):
        asked, briefly = long.conversation(scene, "0"), brief.conversation(scene, "0")
        assert asked.answer == briefly.answer
        assert asked.prompt.replace(f" {long.codec.instruction}", "") == briefly.prompt


@pytest.mark.parametrize("task", [Drive(CONTROLS), Drive(WAYPOINTS, reason=True), Detect(BOXES), Caption()])
def test_a_question_needs_no_answer(task: Any) -> None:
    scene = SCENES[3]
    bare = dataclasses.replace(scene, future=None, thought=None, boxes=None, caption=None, surroundings=None)
    assert task.prompt(bare, "0") == task.conversation(scene, "0").prompt


def test_what_is_to_be_said_has_the_form_of_the_grammar() -> None:
    plain, reasoned = Drive(CONTROLS), Drive(WAYPOINTS, reason=True)
    for scene in SCENES:
        for task in (plain, reasoned, Detect(BOXES)):
            assert accepts(task, task.conversation(scene, "0").answer), (scene.id, type(task))
        assert not accepts(reasoned, Drive(WAYPOINTS).conversation(scene, "0").answer)


def test_driving_needs_a_history_a_future_and_perhaps_a_thought() -> None:
    thoughtless = dataclasses.replace(SCENES[0], thought=None)
    assert Drive(CONTROLS).supports(thoughtless)
    assert not Drive(CONTROLS, reason=True).supports(thoughtless)
    assert not Drive(CONTROLS).supports(dataclasses.replace(SCENES[0], history=None))
    assert not Drive(CONTROLS).supports(dataclasses.replace(SCENES[0], future=None))
    answer = Drive(CONTROLS).conversation(SCENES[0], "0").answer
    assert Drive(CONTROLS).decode(answer[:-1], SCENES[0]) is None


def test_detection_decodes_to_the_nearest_boxes_in_order() -> None:
    task = Detect(BOXES)
    for scene in SCENES:
        assert scene.boxes is not None
        found = task.decode(task.conversation(scene, "0").answer, scene)
        assert found is not None
        away = [math.hypot(x, y) for x, y in scene.boxes.values[:, :2].tolist()]
        order = sorted(range(len(away)), key=away.__getitem__)[: BOXES.max_boxes]
        assert found.labels == tuple(scene.boxes.labels[i] for i in order)
        expected = scene.boxes.values[order, :3]
        np.testing.assert_allclose(found.values[:, :3], expected, atol=0.05 + 1e-6)
    assert not task.supports(dataclasses.replace(SCENES[0], boxes=None))
    assert task.decode("a car, I think", SCENES[0]) is None


@pytest.mark.parametrize("questions_per_sample", [1, 3, 5, 9])
def test_questions_are_neighbours_that_wrap_around_and_their_answers_split_by_line(questions_per_sample: int) -> None:
    task, firsts = Answer(questions_per_sample), set()
    for draw in range(40):
        asked, conversation = task.questions(FIVE, str(draw)), task.conversation(FIVE, str(draw))
        first = FIVE.questions.index(asked[0])
        assert asked == [FIVE.questions[(first + i) % 5] for i in range(min(questions_per_sample, 5))]
        assert conversation.prompt.split("\n") == [q.question for q in asked]
        assert task.answers(str(task.decode(conversation.answer, FIVE)), asked) == [q.answer for q in asked]
        firsts.add(first)
    assert firsts == set(range(5)), "every question has its turn"


def test_too_few_and_too_many_lines_are_answers_all_the_same() -> None:
    asked = list(FIVE.questions[:3])
    assert Answer(3).answers("one\ntwo", asked) == ["one", "two", ""]
    assert Answer(3).answers("1\n2\n3\n4", asked) == ["1", "2", "3"]
    assert not Answer().supports(dataclasses.replace(FIVE, questions=()))


@pytest.mark.parametrize("questions_per_sample", [0, -2])
def test_fewer_than_one_question_is_refused(questions_per_sample: int) -> None:
    with pytest.raises(ValueError, match=rf"questions_per_sample: {questions_per_sample}"):
        Answer(questions_per_sample)


def test_a_caption_is_said_as_it_is() -> None:
    task = Caption()
    assert [task.decode(task.conversation(scene, "0").answer, scene) for scene in SCENES] == [s.caption for s in SCENES]
    assert not task.supports(dataclasses.replace(SCENES[0], caption=None))


def _chosen(scene: Scene, count: int, draw: str = "pass 0") -> Counter[str | None]:
    names = (dataclasses.replace(scene, id=f"scene-{index}") for index in range(count))
    return Counter(choose_task(one, TASKS, WEIGHTS, draw) for one in names)


def _assert_shares(counts: Counter[str | None], shares: dict[str, float]) -> None:
    total = counts.total()
    assert set(counts) == set(shares)
    for name, share in shares.items():
        assert abs(counts[name] - share * total) < 4 * math.sqrt(total * share * (1 - share)), name


def test_tasks_are_chosen_by_their_weights() -> None:
    _assert_shares(_chosen(SCENES[0], 4000), WEIGHTS)


def test_what_a_scene_does_not_support_leaves_its_share_to_the_others() -> None:
    _assert_shares(_chosen(dataclasses.replace(SCENES[0], boxes=None), 4000), {"drive": 5 / 8, "caption": 3 / 8})
    bare = Scene(id="bare", kind="none")
    assert choose_task(bare, TASKS, WEIGHTS, "pass 0") is None


def test_the_choice_is_the_draws_and_the_scenes_alone() -> None:
    def choose(draw: str) -> list[str | None]:
        return [choose_task(dataclasses.replace(SCENES[0], id=str(n)), TASKS, WEIGHTS, draw) for n in range(200)]

    assert choose("pass 0") == choose("pass 0")
    agree = sum(one == other for one, other in zip(choose("pass 0"), choose("pass 1"), strict=True))
    assert abs(agree - 200 * 0.38) < 4 * math.sqrt(200 * 0.38 * 0.62), "another pass draws independently"


@pytest.mark.fault("boxes that nobody could see")
def test_what_no_sensor_saw_is_neither_taught_nor_scored() -> None:
    values = np.zeros((4, 9))
    values[:, 0], values[:, 1] = (8.0, 14.0, 21.0, 30.0), (3.0, -4.0, 5.0, -6.0)
    values[:, 2:6] = (0.9, 0.6, 0.6, 1.8)
    boxes = Boxes(values, ("pedestrian",) * 4, points=np.array([0, 35, 12, 4]))
    scene, task = Scene(id="street", kind="street", boxes=boxes), Detect(BoxTextCodec(max_boxes=40))
    taught = task.decode(task.conversation(scene, "draw").answer, scene)
    assert taught is not None
    assert len(taught) == 3
    score = DetectionScore()
    score.update(scene, taught)
    assert score.compute()["ap/pedestrian"]["all"] == pytest.approx(1.0)
    unknown = Scene(id="street", kind="street", boxes=Boxes(values, boxes.labels))
    assert task.conversation(unknown, "draw").answer.count("pedestrian") == 4


@pytest.mark.fault("answers that refer to what a scene has not")
def test_references_are_taught_where_there_is_something_to_refer_to() -> None:
    scene = next(s for s in (generate_scene(seed, "straight", rig=None) for seed in range(9)) if len(s.boxes or ()))
    scene, unseen = (dataclasses.replace(scene, perception=seen) for seen in (scene.boxes, None))
    referring, spelling = Detect(BoxTokenCodec(references=8, max_new=0)), Detect(BoxTokenCodec(references=8))
    assert [teaches(referring, each) for each in (scene, unseen)] == [True, False]
    assert [teaches(spelling, each) for each in (scene, unseen)] == [True, True]
    assert referring.supports(unseen), "it is scored, as one that finds nothing"
    assert choose_task(unseen, {"detect": referring, "caption": Caption()}, {"detect": 0.9, "caption": 0.1}, "0") == (
        "caption"
    )
