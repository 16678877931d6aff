"""The page of guarantees, collected from the tests that carry `@pytest.mark.guarantee("...")`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SECTIONS = {
    "data": "Data",
    "model": "Model and adapters",
    "objective": "Objectives",
    "simulation": "Simulation",
    "training": "Training and reinforcement learning",
    "parallel": "Parallelism and precision",
    "checkpoint": "Checkpoints",
    "launch": "Launching and recovery",
    "recipe": "Recipes",
    "run": "Runs",
    "generation": "Generation",
    "tracking": "Observability",
    "tools": "Tools",
}
"""The page's sections, by the folder of the first test that proves a promise. Folders of other names come last."""
HEAD = """\
# Guarantees

What users are promised, each with the tests that prove it. The page is generated from the marker
`@pytest.mark.guarantee("...")` by `python -m tools.docs`: a promise without a test cannot appear here. Tests marked
slow run in `make test-slow`; a test that needs what is not installed (vLLM, peft, TRL, promtool) is skipped.
"""


@dataclass(frozen=True, slots=True)
class Proof:
    """A test that proves a promise."""

    promise: str
    """The promise, as users read it."""
    file: str
    """The test's file, relative to the repository."""
    test: str
    """The test's name."""


def test_functions(root: Path) -> Iterator[tuple[str, ast.Module, ast.FunctionDef]]:
    """Yields the tests below `root`/tests and `root`/plugins, in the order of files and lines, each with its file,
    relative to `root`, and the file's tree. Nothing is imported.
    """
    for path in [*sorted((root / "tests").rglob("test_*.py")), *sorted((root / "plugins").rglob("test_*.py"))]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                yield path.relative_to(root).as_posix(), tree, node


def proofs(root: Path) -> Iterator[Proof]:
    """Yields the proofs below `root`, in the order of files and lines."""
    for file, _, node in test_functions(root):
        for decorator in node.decorator_list:
            if (promise := _promise(decorator)) is not None:
                yield Proof(promise, file, node.name)


def _promise(decorator: ast.expr) -> str | None:
    match decorator:
        case ast.Call(func=func, args=[ast.Constant(value=str(promise))]) if (
            ast.unparse(func) == "pytest.mark.guarantee"
        ):
            return promise
    return None


def guarantees_page(root: Path) -> str:
    """The page: a table of promises for each part of the framework."""
    by_promise: dict[str, list[Proof]] = {}
    for proof in proofs(root):
        by_promise.setdefault(proof.promise, []).append(proof)
    sections: dict[str, list[str]] = {title: [] for title in SECTIONS.values()}
    for promise, tests in by_promise.items():
        title = SECTIONS.get(Path(tests[0].file).parts[1], "Other")
        sections.setdefault(title, []).append(f"| {promise} | {_cited(tests)} |")
    parts = [f"\n## {title}\n\n| guarantee | proved by |\n| --- | --- |\n" + "\n".join(rows) + "\n"
             for title, rows in sections.items() if rows]  # fmt: skip
    return HEAD + "".join(parts)


def _cited(tests: list[Proof]) -> str:
    """The tests, file by file: `tests/a/test_b.py`: `test_one`, `test_two`."""
    files: dict[str, list[str]] = {}
    for test in tests:
        files.setdefault(test.file, []).append(f"`{test.test}`")
    return "; ".join(f"`{file}`: {', '.join(names)}" for file, names in files.items())
