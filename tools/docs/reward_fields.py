"""The tables of docs/howto/reward.md: all that a reward may read, from the fields' own descriptions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PAGE = Path("docs", "howto", "reward.md")
BEGIN, END = "<!-- fields: written by tools.docs -->", "<!-- end of fields -->"
TABLES = {
    "`rollouts`": ("framework/simulation/rewards/rollouts.py", "RolloutBatch"),
    "`rollouts.episodes`": ("framework/simulation/episode.py", "Episodes"),
    "`rollouts.episodes.scenes`": ("framework/simulation/scenes.py", "SceneBatch"),
    "each of `rollouts.plans`": ("framework/scene/types.py", "Trajectory"),
    "each of `rollouts.scenes`": ("framework/scene/types.py", "Scene"),
}
"""What a reward reads: how, the file and the class."""


def reward_page(root: Path) -> str:
    """The page with its tables renewed."""
    text = (root / PAGE).read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    tables = [
        f"Of {reads} (`{name}`):\n\n| name | what it holds |\n| --- | --- |\n{_rows(root / file, name)}"
        for reads, (file, name) in TABLES.items()
    ]
    return f"{before}{BEGIN}\n\n{chr(10).join(tables)}\n{END}{rest.partition(END)[2]}"


def _rows(file: Path, name: str) -> str:
    return "".join(f"| `{field}` | {text.replace('|', chr(92) + '|')} |\n" for field, text in fields_of(file, name))


def fields_of(file: Path, name: str) -> Iterator[tuple[str, str]]:
    """The public fields and properties of the class `name`, each with its description in one line."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    (node,) = [each for each in tree.body if isinstance(each, ast.ClassDef) and each.name == name]
    for field, text in zip(node.body, [*node.body[1:], None], strict=True):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=own)), ast.Expr(value=ast.Constant(value=str() as said)):
                yield own, _line(said)
            case ast.AnnAssign(target=ast.Name(id=own)), _:
                raise ValueError(f"{file.name}: {name}.{own} has no description")
            case ast.FunctionDef(name=own, decorator_list=[ast.Name(id="property")]), _:
                yield own, _line(ast.get_docstring(field) or "")


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
