"""Scores of answers (normalised exact match) and captions (word F1)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import torch

from framework.evaluation.results import Sliced
from framework.evaluation.slices import (
    NAME_BYTES,
    RowStates,
    SceneMeasures,
    mean,
    name_row,
    row_names,
    slices_of,
    text_key,
)
from framework.scene.text import is_blank
from framework.scene.types import FloatArray, Question, Scene, SceneError

MARKS = "“”‘’«»。、"
"""Quotation marks and stops outside of ASCII."""
CLOSING = ".,;:!?)]}'\"*_`" + MARKS
"""Punctuation that ends a word and says nothing about a number."""
QUOTES = "([{'\"*_`" + MARKS
"""Punctuation that begins a word and says nothing about a number."""
MINUSES = "\N{MINUS SIGN}\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{FIGURE DASH}\N{EN DASH}\N{SMALL HYPHEN-MINUS}"
WRITTEN_ALIKE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | str.maketrans(dict.fromkeys(MINUSES, "-"))
"""What stands for a minus, and the full-width forms of ASCII, by what they stand for."""
SIGNS = "<>+-~"
"""Punctuation that begins a word and tells it from another: "<half" is not ">half", "-½" is not "½"."""
WORDS_CLOSE = string.punctuation + MARKS
"""Punctuation that ends a word without a digit."""
WORDS_OPEN = "".join(set(WORDS_CLOSE) - set(SIGNS))
"""Punctuation that begins one."""
COMPARED = re.compile(r"([<>]=|[<>≤≥~±])\s*(?=[+-]?\.?[0-9])")
"""A comparison and the white space before its number."""
ALIKE = {"≤": "<=", "≥": ">="}
"""{comparison: how it is written}."""
NUMBER = re.compile(
    r"(?P<comparison>[<>]=?|[~±]?)(?P<sign>[+-]?)(?P<whole>\d*)(?:\.(?P<fraction>\d*))?(?P<unit>[^\d\s]*)",
    re.ASCII,
)
"""A number as a word: a comparison, a sign, digits, and what is written to it (a unit, closing punctuation)."""


def normalise(answer: str) -> str:
    """Fold case, collapse white space, strip punctuation around words: "About 12.5 m." -> "about 12.5 m".

    What tells one number from another stays: a sign, a decimal point, a comparison, a unit ("-5", ".5", "<10", "5 s");
    numbers are written alike: ".5" and "0.50" are both "0.5", "≥ 5m" is ">=5 m".
    """
    text = answer.casefold().translate(WRITTEN_ALIKE)
    text = COMPARED.sub(lambda found: ALIKE.get(found[1], found[1]), text)
    return " ".join(map(_normal_word, text.split()))


def _normal_word(word: str) -> str:
    if not any(character.isdigit() for character in word):
        bare = word.rstrip(WORDS_CLOSE).lstrip(WORDS_OPEN)
        quoted = bare.startswith("<") and word.endswith(">")
        return (bare.removeprefix("<") if quoted else bare) or word
    bare = word.lstrip(QUOTES)
    number = NUMBER.fullmatch(bare)
    if number is None or not (number["whole"] or number["fraction"]):
        return bare.rstrip(CLOSING) or word
    # Digits stay text: they may be more than any number type keeps.
    whole, fraction = number["whole"].lstrip("0") or "0", (number["fraction"] or "").rstrip("0")
    plain = f"{whole}.{fraction}" if fraction else whole
    sign = "-" if number["sign"] == "-" and plain != "0" else ""
    return f"{number['comparison']}{sign}{plain} {number['unit'].strip(CLOSING)}".rstrip()


def is_correct(answer: str, expected: str) -> bool:
    """Whether two answers are equal after normalisation."""
    return normalise(answer) == normalise(expected)


def word_f1(text: str, expected: str) -> float:
    """Word F1, 0 to 1: the harmonic mean of precision and recall over shared words, with multiplicity (Rajpurkar et al.
    2016, "SQuAD").
    """
    words, expected_words = Counter(normalise(text).split()), Counter(normalise(expected).split())
    shared = (words & expected_words).total()
    return 2.0 * shared / (words.total() + expected_words.total()) if shared else 0.0


def majority_answers(questions: Iterable[Question]) -> dict[str, str]:
    """{topic: its most frequent answer}, normalised; ties go to the alphabetically first."""
    counts: dict[str, Counter[str]] = {}
    for question in questions:
        counts.setdefault(question.topic, Counter())[normalise(question.answer)] += 1
    return {topic: min(count, key=lambda answer: (-count[answer], answer)) for topic, count in counts.items()}


def accuracies(correct: FloatArray, topics: npt.NDArray[np.str_], kinds: npt.NDArray[np.str_]) -> Sliced:
    """Accuracies by slice: `accuracy` and each `accuracy/<topic>`, from `correct` `(n,)` (1 right, 0 wrong)."""
    slices = slices_of(kinds)
    results = {"accuracy": {name: mean(correct[mask]) for name, mask in slices.items()}}
    for topic in np.unique(topics).tolist():
        rows = topics == topic
        results[f"accuracy/{topic}"] = {name: mean(correct[mask & rows]) for name, mask in slices.items()}
    return results


class AnswerScore(RowStates):
    """Accuracy of answers by topic and scenario kind. Empty answers and None are wrong and count as `parse_failure`."""

    def __init__(self) -> None:
        names = ((NAME_BYTES,), torch.uint8)
        super().__init__({"topics": names, "kinds": names, "events": ((2,), torch.float64)})

    def judge(self, question: Question, answer: str | None) -> dict[str, float]:
        """The measures of one answer, without adding them."""
        failed = answer is None or is_blank(answer)
        correct = not failed and is_correct(answer or "", question.answer)
        return {"accuracy": float(correct), "parse_failure": float(failed)}

    def update(self, scene: Scene, question: Question, answer: str | None) -> None:
        """Add one answered question of `scene`."""
        judged = self.judge(question, answer)
        self.count(f"{scene.id}/{question.question}")
        self.append("topics", name_row(question.topic))
        self.append("kinds", name_row(scene.kind))
        self.append("events", torch.tensor([[judged["accuracy"], judged["parse_failure"]]], dtype=torch.float64))

    def compute(self) -> Sliced:
        """The `accuracies`, the rate `parse_failure` and the number of `questions`."""
        first = self.first()
        events, kinds = self.table("events").numpy()[first], row_names(self.table("kinds"))[first]
        slices = slices_of(kinds)
        return accuracies(events[:, 0], row_names(self.table("topics"))[first], kinds) | {
            "parse_failure": {name: mean(events[mask, 1]) for name, mask in slices.items()},
            "questions": {name: float(mask.sum()) for name, mask in slices.items()},
            **self.repeated(),
        }


class MajorityScore(RowStates):
    """The accuracy of always giving the topic's most frequent answer: the baseline that looks at no scene.

    Args:
        majority: {topic: answer}, from `majority_answers` of the training questions; other topics are answered wrongly.
            None takes the most frequent answers of the *evaluated* questions: an upper bound for constant answers.
    """

    def __init__(self, majority: Mapping[str, str] | None = None) -> None:
        names = ((NAME_BYTES,), torch.uint8)
        super().__init__({"topics": names, "kinds": names, "expected": ((), torch.int64)})
        self.majority = None if majority is None else dict(majority)

    def update(self, scene: Scene, question: Question) -> None:
        """Add one question of `scene`."""
        self.count(f"{scene.id}/{question.question}")
        self.append("topics", name_row(question.topic))
        self.append("kinds", name_row(scene.kind))
        self.append("expected", torch.tensor([text_key(normalise(question.answer))]))

    def compute(self) -> Sliced:
        """The `accuracies` and the number of `questions`."""
        first = self.first()
        topics, kinds = row_names(self.table("topics"))[first], row_names(self.table("kinds"))[first]
        expected = self.table("expected").numpy()[first]
        correct = np.zeros(len(expected))
        for topic in np.unique(topics).tolist():
            rows = topics == topic
            correct[rows] = expected[rows] == self._constant_answer(topic, expected[rows])
        counts = {name: float(mask.sum()) for name, mask in slices_of(kinds).items()}
        return accuracies(correct, topics, kinds) | {"questions": counts}

    def _constant_answer(self, topic: str, expected: npt.NDArray[np.int64]) -> int:
        """The key of the baseline's answer; -1, which no answer has, for an unknown topic."""
        if self.majority is not None:
            return text_key(normalise(self.majority[topic])) if topic in self.majority else -1
        keys, counts = np.unique(expected, return_counts=True)
        return int(keys[np.argmax(counts)])


class CaptionScore(SceneMeasures):
    """Word F1 of captions. Empty captions and None score 0 and count as `parse_failure`."""

    def __init__(self) -> None:
        super().__init__({"word_f1": mean, "parse_failure": mean})

    def judge(self, scene: Scene, caption: str | None) -> dict[str, float]:
        """The measures of one scene, without adding them. Raises `SceneError` for a scene without a caption."""
        if scene.caption is None:
            raise SceneError(f"scene {scene.id}: field `caption` is missing; leave the scene out of captioning")
        failed = caption is None or is_blank(caption)
        return {"word_f1": word_f1(caption or "", scene.caption), "parse_failure": float(failed)}
