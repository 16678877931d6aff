"""The page of attacks, collected from the tests that carry `@pytest.mark.attack("surface", "attempt", "outcome")`."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from tools.docs.campaigns import Campaign, read_campaigns
from tools.docs.guarantees import test_functions

SURFACES = {
    "target": "a target that a recipe names",
    "plugin": "a plugin",
    "interpolation": "an interpolation, and secrets in recipes",
    "yaml": "YAML",
    "checkpoint": "a checkpoint",
    "coordinator": "the supervisors' coordinator",
    "endpoint": "the metrics endpoint, and the vLLM server of a run",
    "archive": "shards, indices and pictures",
    "answer": "an answer or a plan of a model",
    "rendering": "job rendering",
    "folder": "a run folder",
    "submission": "a submission that is read back",
    "review": "a branch under review",
}
"""What is attacked: {name in the marker: words on the page}, in the page's order."""
DEFAULT_EXAMPLES = 100
"""Examples that hypothesis draws where a test does not say."""
HEAD = """\
# Attacks that were tried

Each attack is a test, which passes only where the attack fails; the [threat model](threat_model.md) says what is
promised. The page is generated from the marker `@pytest.mark.attack("surface", "attempt", "outcome")` by
`python -m tools.docs`. Cases are the values that a test is given. A fuzzer draws its cases by
[hypothesis](https://hypothesis.readthedocs.io): as many as are given here in each run of the tests, at least 200 in a
campaign (`python -m tools.fuzz`).
"""


@dataclass(frozen=True, slots=True)
class Attack:
    """A test that attacks."""

    surface: str
    """What is attacked, a key of `SURFACES`."""
    attempt: str
    """What the attacker tries."""
    outcome: str
    """What comes of it."""
    file: str
    """The test's file, relative to the repository."""
    test: str
    """The test's name."""
    cases: int
    """Values that the test is given, each an attack of its own."""
    examples: int
    """Examples that a fuzzer draws in one run; 0 for a test that is none."""


def attacks(root: Path) -> Iterator[Attack]:
    """Yields the attacks below `root`/tests, in the order of files and lines. Nothing is imported.

    Raises `ValueError` on a marker with other words than three texts, on an unknown surface, and on cases that cannot
    be counted without running the file.
    """
    for file, tree, test in test_functions(root):
        names = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        calls = [each for each in test.decorator_list if isinstance(each, ast.Call)]
        for call in calls:
            if ast.unparse(call.func) == "pytest.mark.attack":
                place = f"{file}: {test.name}"
                texts = [each.value for each in call.args if isinstance(each, ast.Constant)]
                if len(texts) != 3 or texts[0] not in SURFACES:
                    raise ValueError(
                        f"{place}: give attack(surface, attempt, outcome), surface of {', '.join(SURFACES)}"
                    )
                grids = [each.args[1] for each in calls if ast.unparse(each.func) == "pytest.mark.parametrize"]
                cases = prod(_length(values, names, place) for values in grids)
                surface, attempt, outcome = map(str, texts)
                yield Attack(surface, attempt, outcome, file, test.name, cases, _examples(test))


def _length(values: ast.expr, names: Mapping[str, ast.expr], place: str) -> int:
    """Entries of the list or table that `values` spells."""
    match values:
        case ast.List(elts=entries) | ast.Tuple(elts=entries) | ast.Set(elts=entries):
            starred = [each.value for each in entries if isinstance(each, ast.Starred)]
            return len(entries) - len(starred) + sum(_length(each, names, place) for each in starred)
        case ast.Dict(keys=keys):
            return len(keys)
        case ast.Name(id=name) if name in names:
            return _length(names[name], names, place)
        case ast.ListComp(generators=[ast.comprehension(iter=inner, ifs=[])]):
            return _length(inner, names, place)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _length(left, names, place) + _length(right, names, place)
        case ast.Call(func=ast.Name(id="range"), args=[ast.Constant(value=int(count))]):
            return count
    raise ValueError(f"{place}: cannot count the cases of {ast.unparse(values)}; spell them as a list or a table")


def _examples(test: ast.FunctionDef) -> int:
    """Examples of a fuzzer; 0 where the test is none."""
    decorators = [each for each in test.decorator_list if isinstance(each, ast.Call)]
    calls = {ast.unparse(each.func).rpartition(".")[2]: each for each in decorators}
    if "given" not in calls:
        return 0
    return ast.literal_eval(calls["fuzz"].args[0]) if "fuzz" in calls else DEFAULT_EXAMPLES


def attacks_page(root: Path) -> str:
    """The page: totals by surface, the attacks, and the fuzzers."""
    tried = sorted(attacks(root), key=lambda attack: list(SURFACES).index(attack.surface))
    aimed, fuzzed = [each for each in tried if not each.examples], [each for each in tried if each.examples]
    lines = ["## By surface\n", "| surface | tests | cases | fuzzed examples a run |", "| --- | --- | --- | --- |"]
    for surface, words in [*SURFACES.items(), ("", "**all**")]:
        of = [each for each in tried if surface in (each.surface, "")]
        cases = sum(each.cases for each in of if not each.examples)
        lines.append(f"| {words} | {len(of)} | {cases} | {sum(each.cases * each.examples for each in of)} |")
    lines += ["\n## Attacks\n", "| no. | surface | attempt | cases | outcome | test |", "| --- " * 6 + "|"]
    for number, each in enumerate(aimed, 1):
        lines.append(f"| {number} | {each.surface} | {each.attempt} | {each.cases} | {each.outcome} | {_cited(each)} |")
    campaigns = read_campaigns(root)
    titles = "surface | drawn | examples a run | outcome | last campaign: examples | minutes | faults mended | test"
    lines += ["\n## Fuzzers\n", f"| {titles} |", "| --- " * 8 + "|"]
    for each in fuzzed:
        examples = each.cases * each.examples
        figures = _figures(campaigns.get(f"{each.file}::{each.test}"))
        lines.append(f"| {each.surface} | {each.attempt} | {examples} | {each.outcome} | {figures} | {_cited(each)} |")
    every = campaigns.values()
    drawn, minutes, mended = (sum(getattr(each, key) for each in every) for key in ("examples", "minutes", "mended"))
    lines.append(f"| **all** | | | | {drawn} | {minutes:.0f} | {mended} | |")
    return HEAD + "\n" + "\n".join(lines) + "\n"


def _figures(campaign: Campaign | None) -> str:
    """The cells of a fuzzer's last campaign."""
    if campaign is None:
        return "none yet | |"
    open_faults = f" ({campaign.open} open)" if campaign.open else ""
    return f"{campaign.examples} | {campaign.minutes:g} | {campaign.mended}{open_faults}"


def _cited(attack: Attack) -> str:
    return f"`{attack.file}`: `{attack.test}`"
