from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.evaluation.answers import (
    AnswerScore,
    CaptionScore,
    MajorityScore,
    is_correct,
    majority_answers,
    normalise,
    word_f1,
)
from framework.scene.types import Question, SceneError
from tests.evaluation.scenes import make_scene


@pytest.mark.parametrize(
    ("answer", "same"),
    [(" Yes. ", "yes"), ("12.5  M", "12.5 m"), ("two, three!", "two three"), ("«»", "«»"), ("-", "-")],
)
def test_normalise(answer: str, same: str) -> None:
    assert normalise(answer) == same


def test_a_number_is_not_another() -> None:
    assert is_correct("3.", "3")
    assert not is_correct("1.5", "15")
    assert not is_correct("", "3")


@pytest.mark.fault("answers that differ in sign")
@pytest.mark.parametrize(
    ("answer", "other"),
    [("5", "-5"), ("-3 m/s", "3 m/s"), ("5", ".5"), ("<10", ">10"), ("-0.5", "0.5"), ("<10", "10"), ("<=10", "<10"),
     ("50%", "50"), ("3m", "3s"), ("3 m", "3 km"), ("$5", "5"), ("*-5*", "5"), ("--5", "5"), ("-1/2", "1/2"),
     ("1e-3", "1e3"), ("\N{EN DASH}5", "5"), ("< 10", "10"), (">= 5", "> 5"), ("≈5", "5"),
     ("1" + "0" * 40, "1" + "0" * 39 + "1"),
     ("0." + "0" * 40 + "1", "0"), ("1e3", "13"), ("1.5", "1,5"), ("10", "100"), ("5-7", "5"), ("2 cars", "2"),
     ("-½", "½"), ("<half", ">half"), ("-five", "five"), ("-∞", "∞"), ("\N{FIGURE DASH}5", "5"), ("＜10", "＞10")],
)  # fmt: skip
def test_what_tells_numbers_apart_decides(answer: str, other: str) -> None:
    assert not is_correct(answer, other)
    assert not is_correct(other, answer)


@pytest.mark.fault("answers that differ in sign")
@pytest.mark.parametrize(
    ("answer", "other"),
    [("About 12.5 m.", "about 12.5 m"), ("Yes!", "yes"), ("(left)", "left"), ("-5.", "-5"), (".5", "0.5"),
     ("0.50", "0.5"), ("+5", "5"), ("-0", "0"), ("\N{MINUS SIGN}4", "-4"), ("(3)", "3"), ("5,", "5"), ("100", "100.0"),
     ("50%.", "50%"), ("<10.", "<10"), ("3m", "3 m"), ("50 %", "50%"), ("< 10", "<10"), ("≥5", ">= 5"),
     ("**-5**", "-5"), ("007", "7"), ("\N{EN DASH}5", "-5"), ("\N{FIGURE DASH}5", "-5"),
     ("－５", "-5"), ("“Yes.”", "yes"), ("Yes。", "yes"), ("<left>", "left"),
     ("“5”", "5"), ("«-5 m»", "-5 m"), ("‘-0.5.’", "-.5"), ("-5。", "-5"), ("5、", "5"),
     ("1" + "0" * 2000, "1" + "0" * 2000 + ".0")],
)  # fmt: skip
def test_the_same_number_written_otherwise_is_right(answer: str, other: str) -> None:
    assert is_correct(answer, other)


@pytest.mark.attack("answer", "answers of any text", "judged")
@given(st.text(max_size=30), st.text(max_size=30))
@pytest.mark.slow
def test_no_text_raises(one: str, other: str) -> None:
    assert is_correct(one, one)
    assert 0.0 <= word_f1(one, other) <= 1.0


@given(st.decimals(-1000, 1000, places=2), st.decimals(-1000, 1000, places=2), st.sampled_from(["", " m", "%", "<"]))
def test_numbers_are_right_exactly_when_they_are_equal(one: Decimal, other: Decimal, with_: str) -> None:
    said, right = (with_ + str(each) if with_ == "<" else str(each) + with_ for each in (one, other))
    assert is_correct(said, right) == (one == other)


def test_word_f1() -> None:
    assert word_f1("a car brakes", "A car brakes.") == 1.0
    assert word_f1("car car", "a car") == pytest.approx(0.5)
    assert word_f1("", "a car") == word_f1("bus", "a car") == 0.0


QUESTIONS = [
    Question(f"q{i}", answer, topic)
    for i, (answer, topic) in enumerate(
        [("yes", "lead"), ("Yes.", "lead"), ("no", "lead"), ("2", "count"), ("3", "count"), ("3", "count")]
    )
]


def test_majority_answers() -> None:
    assert majority_answers(QUESTIONS) == {"lead": "yes", "count": "3"}
    assert majority_answers([Question("q", "b", "t"), Question("q", "a", "t")]) == {"t": "a"}


def test_accuracy_by_topic_and_kind() -> None:
    score = AnswerScore()
    answers = ["yes", "no", None, "2", " ", "3"]
    for index, (question, answer) in enumerate(zip(QUESTIONS, answers, strict=True)):
        score.update(make_scene(kind="curve" if index < 3 else "straight"), question, answer)
    results = score.compute()
    assert results["accuracy"] == pytest.approx({"all": 0.5, "curve": 1 / 3, "straight": 2 / 3})
    assert results["accuracy/lead"]["all"] == pytest.approx(1 / 3)
    assert results["parse_failure"] == pytest.approx({"all": 1 / 3, "curve": 1 / 3, "straight": 1 / 3})
    assert results["questions"]["all"] == 6.0


def test_majority_of_the_evaluated_questions_and_of_others() -> None:
    for majority, expected in ((None, 4 / 6), ({"lead": "No"}, 1 / 6), ({"lead": "yes", "count": "3"}, 4 / 6)):
        score = MajorityScore(majority)
        for question in QUESTIONS:
            score.update(make_scene(), question)
        assert score.compute()["accuracy"]["all"] == pytest.approx(expected)


def test_captions() -> None:
    score, scene = CaptionScore(), make_scene(caption="A car brakes")
    score.update(scene, score.judge(scene, "a car"))
    other = make_scene(id="other", caption="A car brakes")
    score.update(other, score.judge(other, ""))
    results = score.compute()
    assert results["word_f1"]["all"] == pytest.approx(0.4)
    assert results["parse_failure"]["all"] == 0.5
    with pytest.raises(SceneError, match="hand-1: field `caption`"):
        score.judge(make_scene(), "a car")
