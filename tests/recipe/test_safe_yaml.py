"""YAML of strangers: one clear error with file and line, at once."""

from __future__ import annotations

import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from framework.__main__ import main
from framework.recipe.catalogue import Catalogue
from framework.recipe.check import check
from framework.recipe.problem import RecipeError
from framework.recipe.safe_yaml import LARGEST_FILE
from tests.fuzzing import fuzz

BOMB = "bomb:\n" + "".join(
    f"  a{level}: &a{level} [{', '.join([f'*a{level - 1}' if level else 'x'] * 9)}]\n" for level in range(9)
)
LAUGHS = "task:\n  out: ${task.a0}\n" + "".join(f"  a{n}: ${{task.a{n + 1}}}${{task.a{n + 1}}}\n" for n in range(40))
SECTIONS = "".join(f"c{n}: {{a: '${{c{n + 1}}}', b: '${{c{n + 1}}}'}}\n" for n in range(30)) + "c30: {x: 1}\n"
HOSTILE = {
    "a python object": ("x: !!python/object/apply:os.system [ls]", "tag"),
    "a python name": ("x: !!python/name:os.system", "tag"),
    "an unknown tag": ("x: !run ls", "tag"),
    "binary": ("x: !!binary aGVsbG8=", "tag"),
    "a set": ("x: !!set {a, b}", "tag"),
    "aliases that explode": (BOMB, "once aliases are copied"),
    "an anchor in itself": ("x: &a [*a]", "contains itself"),
    "an anchor in its own mapping": ("x: &a {y: *a}", "contains itself"),
    "an unknown alias": ("x: *nowhere", "put the value in quotes"),
    "deep lists": ("x: " + "[" * 500 + "]" * 500, "deep"),
    "deep mappings": ("x: " + "{a: " * 300 + "1" + "}" * 300, "deep"),
    "a key twice": ("x: 1\nx: 2", "twice"),
    "a nested key twice": ("x: {y: 1, y: 2}", "twice"),
    "a list as key": ("? [a, b]\n: 1", "a key that is a list"),
    "two documents": ("x: 1\n---\nx: 2", "second document"),
    "too large": ("x: " + "a" * LARGEST_FILE, "larger than 1 MB"),
    "a time that is a number": ("x: 1:30", "base 60"),
    "a number in base 8": ("x: 010", "base 8"),
    "a control character": ("x: a\x07b", "not YAML"),
    "an open bracket": ("x: [1, 2", "a [ opens in this line and is not closed by ]"),
    "references that explode": (f"{LAUGHS}  a40: x\n", "make thousands of values of it"),
    "sections that explode": (SECTIONS, "make thousands of values of it"),
    "a text of many references": ("task: {out: '" + "${run.name}" * 20_000 + "'}", "make thousands of values of it"),
    "a long text that is often read": (
        f"y: {'a' * 900_000}\ntask: {{out: '{'${y}' * 90}'}}",
        "make thousands of values of it",
    ),
    "deep references": ("task: {out: '" + "${" * 2_000 + "a" + "}" * 2_000 + "'}", "nested more than 8 deep"),
    "a number of thousands of digits": ("task: {steps: " + "9" * 5_000 + "}", "a number of 5000 characters"),
    "a hexadecimal one": ("task: {steps: 0x" + "f" * 6_000 + "}", "a number of 6002 characters"),
    "a merge of a number": ("task: {<<: 1}", "<< takes a mapping"),
    "a merge of nothing": ("task: {<<: }", "<< takes a mapping"),
    "an equals sign": ("task: {out: =}", "put it in quotes"),
    "a tag on a list": ("task: !!map [1]", "does not fit its value"),
    "a tag on a mapping": ("task: !!seq {a: 1}", "does not fit its value"),
    "a tag on a word": ("task: {steps: !!int x}", "'x' is no int"),
    "a truth that is none": ("task: {steps: !!bool maybe}", "'maybe' is no bool"),
    "a key that is no": ("task: {no: 1}", "the key no is no text to YAML"),
    "a key of nothing": ("task: {null: 1}", "the key null is no text to YAML"),
    "an escape of the terminal": ('task: {out: "\\e[2J"}', "U+001B"),
    "a zero": ('task: {out: "a\\0b"}', "U+0000"),
    "text turned round": ("task: {out: \u202egnp.exe}", "U+202E"),
    "tabs": ("x:\n\ty: 1", "a tab indents this line"),
}
HEAD = "# A recipe.\n# @package _global_\ndefaults:\n  - toy\n  - _self_\n"


def _write(catalogue: Catalogue, text: str) -> None:
    (catalogue.root / "recipes" / "strange.yaml").write_text(HEAD + text)


@pytest.mark.attack("yaml", "tags, bombs, depth, doubled keys, sizes", "one error with file and line, within 5 s")
@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("verb", ["check", "show"])
@pytest.mark.fast_cases(20)
def test_hostile_yaml_is_one_clear_error(
    catalogue: Catalogue, kind: str, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = HOSTILE[kind]
    _write(catalogue, text)
    started = time.process_time()
    assert main([verb, "recipe=strange"], catalogue) == 2
    assert time.process_time() - started < 5
    printed = "".join(capsys.readouterr()).strip().splitlines()
    assert len(printed) == 1
    assert printed[0].startswith("recipes/strange.yaml")
    assert message in printed[0]
    assert len(printed[0]) < 400


@pytest.mark.parametrize(
    "text",
    [
        "task: {out: &a [1, 2], steps: 3}",
        "task: {out: !!str 010}",
        "task: {out: '1:30'}",
        "task: {out: 2026-11-29}",
        "task:\n  <<: &b {out: a}\n  steps: 4",
        "task: {out: 1_000}",
        "task: {out: '${oc.env:A,${oc.env:B,${oc.env:C,x}}}'}",
        "task: {out: 'no', steps: 0x1F}",
        'task: {out: "two\\tcolumns\\nand lines"}',
    ],
)
def test_plain_yaml_passes(catalogue: Catalogue, text: str) -> None:
    _write(catalogue, text)
    composition, findings = check(["recipe=strange"], catalogue)
    assert composition is not None
    assert not [finding for finding in findings if "YAML" in finding.message or "tag" in finding.message]


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        ["???", "${run.name}", "${nothing}", "${oc.env:HOME}", "${", "$", "*", "&", "!x", "{a", "_target_"]
    ),
)
KEYS = st.one_of(
    st.sampled_from(
        ["task", "run", "optimizer", "defaults", "plugins", "_target_", "_partial_", "_args_", "steps", "launch"]
    ),
    st.text(max_size=6),
)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


@pytest.mark.slow
@pytest.mark.attack("yaml", "any tree as a recipe", "problems, no other exception")
@given(tree=st.dictionaries(KEYS, TREES, max_size=5))
@fuzz(60)
def test_any_tree_is_checked_without_another_exception(catalogue: Catalogue, tree: dict[str, object]) -> None:
    _check_only_refuses(catalogue, yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "replace"))


@pytest.mark.attack(
    "yaml", "a section that is an interpolation, of nothing or of itself", "problems, no other exception"
)
@pytest.mark.parametrize("run", ["${0}", "${run.0}", "${run}", "${paths.0}"])
def test_a_section_that_is_an_interpolation_is_a_problem(catalogue: Catalogue, run: str) -> None:
    _check_only_refuses(catalogue, f"run: '{run}'\n".encode())


def test_sections_that_contain_themselves_are_named_at_once(catalogue: Catalogue) -> None:
    _write(catalogue, "task: {out: a}\na: {x: '${b}', y: '${b}'}\nb: {x: '${a}', y: '${a}', z: '${b}'}\n")
    started = time.process_time()
    composition, findings = check(["recipe=strange"], catalogue)
    assert time.process_time() - started < 5
    assert composition is not None
    assert {finding.key for finding in findings if "fails" in finding.message} == {"a.x", "a.y", "b.x", "b.y", "b.z"}


@pytest.mark.attack("yaml", "any bytes as a recipe", "problems, no other exception")
@given(text=st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")) | st.binary(max_size=60))
@fuzz(60)
def test_any_bytes_are_checked_without_another_exception(catalogue: Catalogue, text: bytes) -> None:
    _check_only_refuses(catalogue, text)


def _check_only_refuses(catalogue: Catalogue, text: bytes) -> None:
    (catalogue.root / "recipes" / "strange.yaml").write_bytes(HEAD.encode() + text)
    try:
        _, findings = check(["recipe=strange"], catalogue)
    except RecipeError as error:
        findings = list(error.problems)
    assert all(str(finding) for finding in findings)
