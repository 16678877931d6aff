"""The kinds of faults that were mended, each with the tests that carry `@pytest.mark.fault("kind")`."""

from __future__ import annotations

import ast
from pathlib import Path

from tools.docs.guarantees import test_functions

KINDS = {
    "a camera that no scene has": "it is refused with the nearest name; a sensor that no scene has is warned of",
    "a picture that is none": "it is quarantined with its reason",
    "grey levels of 16 bits": "they keep their proportion",
    "a past that tells of the future": "inputs are equal however the log goes on",
    "classes that a file numbers itself": "labels mean what the file says",
    "a still of another size, or turned": "it is turned upright, or refused with both sizes",
    "boxes that nobody could see": "they are neither taught nor scored",
    "answers that refer to what a scene has not": "they are not taught, and `check` says so",
    "what happens between two samples": "collisions and road departures are found at any phase",
    "groups that all succeed, or all fail": "dynamic sampling drops them",
    "road users who come near later": "they are simulated, annotated now or not",
    "numbers that no record may hold": "the field is named where the scene is written or read",
    "NaN in a map": "scene and field are named",
    "roads without an area": "the polygon is named; a map's is mended or left out, with a count",
    "two objects of one name": "one is left out and counted, and the scene is kept",
    "sensors whose files are not there": "the frame is kept without them, and the report counts it",
    "answers that nobody sees": "they are empty, and skipped by file, line and field",
    "videos that are not what is said of them": "they are skipped with their reason, and kept upright",
    "plans that are not finite": "they are the worst of their group",
    "rewards that are no number, or absurd": "the answer is dropped and counted",
    "answers that differ in sign": "signs, points, comparisons and units decide",
    "what an evaluation refuses after training": "the scene is refused where it is written",
    "a stranger at the coordinator": "it is dropped, and the job ends well",
    "RECORDINGS in a pod": "what a recipe does not use is no problem; the remedy works",
    "a lone process in an allocation": "it trains alone and says so",
    "status of runs with evaluations": "every sound run is listed",
    "a stop that counts as a failure": "it counts as none",
    "time slices that use up requeues": "failures alone do",
    "clips in an exported model": "its processor gives the trained tokens",
    "pictures in an exported model": "its processor shows them as training does, bit for bit",
    "numbers out of range": "`check` refuses them by name",
    "names too long for a file": "they are shortened, or refused by name",
    "two runs of one name": "each run of a sweep has its own",
    "a checkpoint that is a pickle": "nothing of it is called",
    "a recipe that runs code": "it is refused, unimported",
    "secrets in recipes": "they are refused, and no verb prints them",
    "secrets in what leaves": "they are masked at every exit",
    "a text that stops its reader": "a look for secrets takes a time that grows as the text does",
    "files whose last line is cut": "the cut line is passed over",
    "an exported model that does not stop": "it stops where trained answers end",
    "a stage from another's checkpoint": "it is refused, both stages named",
    "results of old weights": "they are made again",
    "a resumed run with other values": "each is applied, or refused by name",
    "a request that cannot be used": "it is refused by its field, and the server goes on",
    "two writers in one folder": "the second is refused",
}
"""What went wrong once: {kind, as the marker names it: what holds now}."""


def faults_section(root: Path) -> str:
    """The section of the page of attacks: each kind with the tests that hold it.

    Raises `ValueError` on a marker of an unknown kind, and on a kind that no test holds.
    """
    tests: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for file, _, node in test_functions(root):
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.fault":
                kind = ast.literal_eval(call.args[0])
                if kind not in tests:
                    raise ValueError(f"{file}: {node.name}: fault({kind!r}) is no kind of tools/docs/faults.py")
                tests[kind].append(f"`{file}`: `{node.name}`")
    if free := [kind for kind, holding in tests.items() if not holding]:
        raise ValueError(f"no test carries pytest.mark.fault of {free}; mark one, or leave the kind out")
    rows = [f"| {kind} | {KINDS[kind]} | {'; '.join(holding)} |" for kind, holding in tests.items()]
    return "\n".join(
        [
            "## Kinds of faults\n",
            "What went wrong once, by its kind, and the tests that hold what is right (`@pytest.mark.fault`).\n",
            "| kind | now | tests |",
            "| --- | --- | --- |",
            *rows,
        ]
    )
