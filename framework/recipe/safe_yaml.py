"""Reads YAML that a stranger may have written: one clear error instead of a surprise.

Refused are files that are too large, nest too deeply or grow too much by their aliases, several documents in one
file, keys that a mapping has twice or that are no words, tags that make anything but plain values or do not fit their
value, numbers that YAML 1.1 reads in base 8 or 60, numbers of hundreds of digits, interpolations within many others,
and characters that would do something to the terminal on which a value is shown.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from framework.recipe.problem import UNPRINTABLE, Origin, Problem, RecipeError
from framework.recipe.yaml_faults import yaml_fault

LARGEST_FILE = 1 << 20
"""Bytes of the largest file that is read."""
DEEPEST = 40
"""Mappings and lists inside each other; the recipes nest 12 deep."""
MOST_NODES = 100_000
"""Values of the largest file once its aliases are copied."""
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge")}
_SURPRISING = re.compile(r"[-+]?(0[0-7_]+|[1-9]\d*(:[0-5]?\d)+(\.\d*)?)")
_MERGE = "<<"
_KINDS: dict[type[yaml.Node], str] = {yaml.MappingNode: "map", yaml.SequenceNode: "seq"}
_CONSTRUCTOR = yaml.constructor.SafeConstructor()
LONGEST_NUMBER = 100
"""Characters of the longest number."""
DEEPEST_REFERENCE = 8
"""Interpolations inside each other."""


def read_nodes(file: Path, name: str) -> yaml.Node | None:
    """The YAML nodes of `file`, with their lines; None for an empty file. Messages call the file `name`.

    Raises `RecipeError` with the line for anything that the module's docstring lists, and for what is not YAML.
    """
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise _refusal(name, None, f"larger than {LARGEST_FILE >> 20} MB; a recipe holds no data")
        text = file.read_text(encoding="utf-8")
        _check_events(text, name)
        node = yaml.compose(text, Loader=yaml.CSafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise _refusal(name, None, f"cannot be read: {error}") from error
    except yaml.MarkedYAMLError as error:
        line, message = yaml_fault(error, text)
        raise RecipeError([Problem(Origin(name, line), "", message)]) from error
    except yaml.YAMLError as error:
        raise _refusal(name, None, f"not YAML: {str(error).splitlines()[0]}") from error
    if node is not None:
        _check_nodes(node, name)
    return node


def _check_events(text: str, name: str) -> None:
    """Refuse depth, documents and tags while the text streams by, before anything is built of it."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise _refusal(name, event.start_mark, "a second document; a recipe is one")
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                raise _refusal(name, event.start_mark, f"nested more than {DEEPEST} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        tag = getattr(event, "tag", None)
        if tag not in (None, "!", *_PLAIN_TAGS):
            raise _refusal(name, event.start_mark, f"the tag {tag} is not allowed; write a plain value")


def _check_nodes(root: yaml.Node, name: str) -> None:
    """Refuse doubled keys, surprising numbers, and aliases that contain themselves or grow too much."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in open_nodes:
            raise _refusal(name, node.start_mark, "an anchor that contains itself")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            sizes[id(node)] = 1 + sum(size(inner) for inner in _inner(node, name))
            open_nodes.remove(id(node))
            if sizes[id(node)] > MOST_NODES:
                raise _refusal(name, node.start_mark, f"more than {MOST_NODES:,} values once aliases are copied")
        return sizes[id(node)]

    size(root)


def _inner(node: yaml.Node, name: str) -> list[yaml.Node]:
    """The nodes directly inside `node`, checked on the way."""
    if isinstance(node, yaml.ScalarNode):
        if (fault := _scalar_fault(node)) is not None:
            raise _refusal(name, node.start_mark, fault)
        return []
    if node.tag != f"{_TAG}{_KINDS[type(node)]}":
        raise _refusal(name, node.start_mark, f"the tag {node.tag} does not fit its value; leave it out")
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    seen = set[str]()
    for key, value in node.value:
        if (fault := _key_fault(key, value, seen)) is not None:
            raise _refusal(name, key.start_mark, fault)
        seen.add(key.value)
    return [inner for pair in node.value for inner in pair]


def _key_fault(key: yaml.Node, value: yaml.Node, seen: set[str]) -> str | None:
    """Why a mapping that has the keys `seen` may not have this one."""
    if not isinstance(key, yaml.ScalarNode):
        return "a key that is a list or mapping; write a word"
    if key.tag == f"{_TAG}merge":
        merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
        fits = all(isinstance(each, yaml.MappingNode) for each in merged)
        return None if fits else f"{_MERGE} takes a mapping, or a list of them"
    if key.tag in (f"{_TAG}bool", f"{_TAG}null"):
        return f"the key {key.value or 'of nothing'} is no text to YAML; put it in quotes"
    return f"the key '{key.value}' is given twice in one mapping" if key.value in seen else None


def _scalar_fault(node: yaml.ScalarNode) -> str | None:
    """Why a word or number may not stand in a recipe."""
    if found := UNPRINTABLE.search(node.value):
        return f"the character U+{ord(found[0]):04X} does something to the terminal; take it out"
    if nesting(node.value, r"\$\{", r"\}") > DEEPEST_REFERENCE:
        return f"interpolations nested more than {DEEPEST_REFERENCE} deep"
    kind = node.tag.removeprefix(_TAG)
    if kind == "value":
        return f"{node.value} alone is no value to YAML; put it in quotes"
    if not node.style and kind != "str" and _SURPRISING.fullmatch(node.value):
        meaning = "in base 60" if ":" in node.value else "in base 8"
        return f"{node.value} is read {meaning}; write a plain number, or quote it"
    if kind in ("int", "float") and len(node.value) > LONGEST_NUMBER:
        return f"a number of {len(node.value)} characters; {LONGEST_NUMBER} are the most"
    if kind in ("int", "float", "bool", "null", "map", "seq"):
        try:
            _CONSTRUCTOR.construct_object(node)
        except (ValueError, KeyError, yaml.YAMLError):
            return f"{node.value[:40]!r} is no {kind}, as the tag says; leave it out"
        finally:
            _CONSTRUCTOR.constructed_objects.clear()
    return None


def nesting(text: str, opening: str, closing: str) -> int:
    """How deep what matches `opening` stands inside itself, each up to its `closing`."""
    depth = deepest = 0
    for found in re.finditer(f"({opening})|{closing}", text):
        depth = max(0, depth + (-1 if found[1] is None else 1))
        deepest = max(deepest, depth)
    return deepest


def _refusal(name: str, mark: Any, message: str) -> RecipeError:
    """The error at `mark`, a place in the file of yaml's C or Python reader; None: of the file as a whole."""
    return RecipeError([Problem(Origin(name, mark.line + 1 if mark is not None else None), "", message)])
