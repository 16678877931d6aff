"""The check finds every fault at once and names file, line, key and what was meant."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from framework.recipe.catalogue import Catalogue
from framework.recipe.check import check

Write = Callable[[str, str], str]


def faults(catalogue: Catalogue, *overrides: str) -> list[str]:
    _, problems = check(overrides, catalogue)
    return [str(problem) for problem in problems if not problem.warning]


def only(found: list[str]) -> str:
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("overrides", [["recipe=toy"], ["recipe=toy_fast"], ["recipe=toy", "scale=tiny"]])
def test_a_sound_recipe_has_no_problems(catalogue: Catalogue, overrides: list[str]) -> None:
    assert faults(catalogue, *overrides) == []


@pytest.mark.parametrize(
    ("line", "key", "message", "nearest"),
    [
        ("stepz: 4", "task.stepz", "takes no argument 'stepz'", "steps"),
        ("steps: many", "task.steps", "must be an integer, not text (many)", None),
        ("steps: 1.5", "task.steps", "must be an integer, not a number (1.5)", None),
        ("steps: true", "task.steps", "must be an integer, not a boolean", None),
        ("mode: trian", "task.mode", "must be one of train, evaluate, not text (trian)", None),
        ("betas: [0.9]", "task.betas", "must be a list of 2, not of 1", None),
        ("betas: [0.9, high]", "task.betas", "at position 1 must be a number", None),
        ("stages: [broad]", "task.stages", "at position 0 must be a mapping", None),
        ("shards: nowhere", "task.shards", "there is no file or folder 'nowhere'", None),
        ("shards: ???", "task.shards", "must be given", None),
        ("steps: ${run.sed}", "task.steps", "Interpolation key 'run.sed' not found", "run.seed"),
        ("_target_: toy_tasks.tasks.Tusk", "task._target_", "'toy_tasks.tasks' has no 'Tusk'", "toy_tasks.tasks.Task"),
        ("_target_: toy_tasks.task.Task", "task._target_", "'toy_tasks' has no 'task'", "toy_tasks.tasks"),
        ("_args_: true", "task._args_", "must be a list of arguments, not True", None),
        ("_args_: text", "task._args_", "must be a list of arguments, not 'text'", None),
        ("_partial_: 1", "task._partial_", "must be true or false, not 1", None),
        ("_recursive_: no way", "task._recursive_", "must be true or false", None),
        ("_convert_: every", "task._convert_", "must be one of none, partial, object, all", None),
        ("_target_: torch.load", "task._target_", "torch.load: this target is not allowed", None),
        ("_target_: toy_tasks.tasks.system", "task._target_", "which is not allowed", None),
    ],
)
def test_each_kind_of_fault_names_its_line(
    catalogue: Catalogue, recipe: Write, line: str, key: str, message: str, nearest: str | None
) -> None:
    name = recipe("planted", f"defaults: [toy, _self_]\ntask:\n  {line}\n")
    fault = only(faults(catalogue, f"recipe={name}"))
    assert fault.startswith(f"recipes/planted.yaml:4 {key}: ")
    assert message in fault
    assert (f"(did you mean {nearest}?)" in fault) == (nearest is not None)


def test_remote_and_existing_paths_are_there(catalogue: Catalogue) -> None:
    assert faults(catalogue, "recipe=toy", "task.shards=s3://bucket/shards") == []
    assert faults(catalogue, "recipe=toy", "task.shards=conf") == []


def test_a_file_of_a_component_that_nothing_reads_need_not_be_there(catalogue: Catalogue, tree: Path) -> None:
    with (tree / "conf" / "config.yaml").open("a") as base:
        base.write("spare:\n  _target_: toy_tasks.tasks.Task\n  out: a\n  steps: 1\n  shards: nowhere\n")
    assert faults(catalogue, "recipe=toy") == []
    assert "no file or folder" in only(faults(catalogue, "recipe=toy", "task.stages=[{a: ${spare}}]"))


def test_a_missing_argument_is_named_with_its_component(catalogue: Catalogue, recipe: Write) -> None:
    recipe("bare", "plugins: [toy_tasks]\ntask:\n  _target_: toy_tasks.tasks.Task\n  out: a\n")
    fault = only(faults(catalogue, "recipe=bare"))
    assert fault == "recipes/bare.yaml:4 task: toy_tasks.tasks.Task needs the argument 'steps'"


def test_positional_arguments_count(catalogue: Catalogue, recipe: Write) -> None:
    recipe("positional", "plugins: [toy_tasks]\ntask:\n  _target_: toy_tasks.tasks.Task\n  _args_: [a, 3]\n")
    assert faults(catalogue, "recipe=positional") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("[a, many]", "task._args_.1: must be an integer, not text (many)"),
        ("[a, 1.5]", "task._args_.1: must be an integer"),
        ("[{_target_: torch.nn.Identity}, 3]", "task._args_.0: must be a str, which torch.nn.Identity is not"),
        ("[a, -3]", "task._args_.1: Task refuses it: steps must not be negative"),
        ("[a, 3]\n  out: b", "task.out: toy_tasks.tasks.Task takes 'out' once; _args_ gives it too"),
    ],
)
def test_positional_arguments_are_checked_as_named_ones(
    catalogue: Catalogue, recipe: Write, arguments: str, message: str
) -> None:
    recipe("positional", f"plugins: [toy_tasks]\ntask:\n  _target_: toy_tasks.tasks.Task\n  _args_: {arguments}\n")
    assert message in only(faults(catalogue, "recipe=positional"))


def test_a_key_that_nothing_reads(catalogue: Catalogue, recipe: Write) -> None:
    recipe("dead", "defaults: [toy, _self_]\nrun:\n  seeed: 3\nextra:\n  a: 1\n  b: 2\n")
    found = faults(catalogue, "recipe=dead")
    assert found[0].startswith("recipes/dead.yaml:4 run.seeed: nothing reads this key")
    assert found[0].endswith("(did you mean run.seed?)")
    assert found[1].startswith("recipes/dead.yaml:5 extra: nothing reads this key")
    assert len(found) == 2


def test_a_list_that_nothing_reads(catalogue: Catalogue, recipe: Write) -> None:
    recipe("dead", "defaults: [toy, _self_]\nstages: [broad, quality]\n")
    fault = only(faults(catalogue, "recipe=dead"))
    assert fault.startswith("recipes/dead.yaml:3 stages: nothing reads this key")


def test_an_interpolated_key_is_read(catalogue: Catalogue, recipe: Write) -> None:
    recipe("alive", "defaults: [toy, _self_]\nlength:\n  steps: 9\n  half: 4\ntask:\n  steps: ${length.steps}\n")
    fault = only(faults(catalogue, "recipe=alive"))
    assert fault.startswith("recipes/alive.yaml:5 length.half: nothing reads this key")


def test_overrides_are_checked_like_files(catalogue: Catalogue) -> None:
    assert faults(catalogue, "recipe=toy", "optimizer.lrr=1", "run.sead=2", "optimizr=sgd", "a=1,2") == [
        "command line a=1,2: several values need -m (write key=[a,b] for one list)",
        "command line optimizer.lrr: torch.optim.AdamW takes no argument 'lrr' (did you mean lr?)",
        "command line optimizr: there is no such key (did you mean optimizer?)",
        "command line run.sead: there is no such key (did you mean run.seed?)",
    ]


def test_an_argument_unlike_any_other_is_answered_with_all() -> None:
    (fault,) = check(["recipe=demo", "curriculum.stages.broad.learning_rate=1e-4"])[1]
    assert "takes no argument 'learning_rate'; it takes data, optimizer, schedule, steps, lr, " in str(fault)


def test_the_end_of_a_key_is_enough_to_find_it(catalogue: Catalogue) -> None:
    fault = only(faults(catalogue, "recipe=toy", "lr=1"))
    assert fault == "command line lr: there is no such key (did you mean optimizer.lr?)"


def test_an_argument_the_preset_leaves_out_needs_no_plus(catalogue: Catalogue) -> None:
    assert faults(catalogue, "recipe=toy", "optimizer.eps=1e-6") == []


def test_an_override_reaches_through_an_interpolation(catalogue: Catalogue) -> None:
    composition, problems = check(["recipe=toy", "task.optimizer.lr=0.5"], catalogue)
    assert composition is not None
    assert not problems
    assert composition.raw["optimizer"]["lr"] == 0.5
    assert composition.raw["task"]["optimizer"] == "${optimizer}"


def test_a_file_must_not_drop_an_interpolation_for_one_key(catalogue: Catalogue, recipe: Write) -> None:
    recipe("dropped", "defaults: [toy, _self_]\ntask:\n  optimizer:\n    lr: 0.5\n")
    fault = only(faults(catalogue, "recipe=dropped"))
    assert fault.startswith("recipes/dropped.yaml:4 task.optimizer: this would replace the whole of ${optimizer}")
    assert fault.endswith("(did you mean optimizer?)")


def test_several_arguments_at_once(catalogue: Catalogue) -> None:
    assert faults(catalogue, "recipe=toy", "optimizer={lr: 3, betas: [0.9, 0.8]}") == []
    found = faults(catalogue, "recipe=toy", "optimizer={lrr: 3}")
    assert "takes no argument 'lrr'" in only(found)


def test_a_misspelt_preset_does_not_hide_the_rest(catalogue: Catalogue, recipe: Write) -> None:
    recipe("preset", "defaults:\n  - toy\n  - _self_\n  - override /optimizer: adamv\ntask:\n  stepz: 4\n")
    found = faults(catalogue, "recipe=preset")
    assert found[0].startswith("recipes/preset.yaml:5 defaults.optimizer: no preset 'adamv' in optimizer/")
    assert found[0].endswith("(did you mean adamw?)")
    assert found[1].startswith("recipes/preset.yaml:7 task.stepz: ")
    assert len(found) == 2


def test_a_choice_of_an_unknown_group(catalogue: Catalogue, recipe: Write) -> None:
    recipe("group", "defaults:\n  - toy\n  - _self_\n  - override /optimiser: sgd\n")
    fault = only(faults(catalogue, "recipe=group"))
    assert fault.startswith("recipes/group.yaml:5 defaults.optimiser: ")
    assert fault.endswith("(did you mean optimizer?)")


def test_a_choice_that_must_be_added_first(catalogue: Catalogue, recipe: Write) -> None:
    preset = next(iter(catalogue.conf_folders())) / "schedule" / "flat.yaml"
    preset.parent.mkdir()
    preset.write_text("value: 1\n")
    assert only(faults(catalogue, "recipe=toy", "schedule=flat")).endswith("(did you mean +schedule?)")
    recipe("group", "defaults:\n  - toy\n  - _self_\n  - override /schedule: flat\n")
    assert only(faults(catalogue, "recipe=group")).endswith("(did you mean schedule without override?)")


@pytest.mark.attack("interpolation", "a variable that names a secret", "refused")
def test_no_secret_is_resolved_into_what_is_kept(
    catalogue: Catalogue, recipe: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE_TOKEN", "hush")
    monkeypatch.setenv("TOKENIZER", "me")
    recipe("store", "defaults: [toy, _self_]\ntask:\n  mode: ${oc.env:STORE_TOKEN}\n")
    fault = only(faults(catalogue, "recipe=store"))
    assert fault.startswith("recipes/store.yaml:4 task.mode: it reads STORE_TOKEN")
    assert "STORE_TOKEN, a secret" in fault
    recipe("user", "defaults: [toy, _self_]\nrun:\n  folder: ${oc.env:TOKENIZER}\n")
    assert faults(catalogue, "recipe=user") == []
    assert "TOKENIZER, a secret" in faults(catalogue, "recipe=user", "+launch={secrets: [TOKENIZER]}")[0]


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("task:\n  a: [1, 2\nrun: 3\n", 3, "a [ opens in this line and is not closed by ]"),
        ("task:\n  a: {b: {c: 1}\n  d: 2\n", 3, "a { opens in this line and is not closed by }"),
        ("task:\n  a: {b: {c: 1}}}\n", 3, "a } closes what was never opened"),
        ("task:\n  a: {b: ${run.seed}}\n", 3, "a reference inside { } needs quotes"),
        ("task: 1\n  steps: 2\n", 3, "is indented deeper than the line above"),
        ("task:\n  steps: 2\n out: 3\n", 4, "is indented like no line above"),
        ("task:\n\tsteps: 2\n", 3, "a tab indents this line"),
        ("task:\n  out: a\n\tsteps: 2\n", 4, "a tab indents this line"),
        ("task:\n  out: 'a\nrun: {}\n", 3, "a quote opens in this line and is not closed"),
        ("task:\n  out: 'it's'\n", 3, "text follows a closing quote"),
        ("task:\n  steps 2\n  out: a\n", 3, "a colon is missing: write 'steps: 2'"),
        ("task:\n  out: a\n  steps 2\n", 4, "a colon is missing: write 'steps: 2'"),
        ("task:\n  steps:2\n  out: a\n", 3, "a blank is missing behind the colon: write 'steps: 2'"),
        ("task\n  steps: 2\n", 2, "a colon is missing: write 'task:'"),
        ("task:\n  out: a: b\n", 3, "two colons in one line"),
        ("task:\n  out: @a\n", 3, "a value cannot begin with @"),
        ('task:\n  out: "a\\d"\n', 3, "a backslash in double quotes"),
        ("task:\n  steps: 2\n - out\n", 4, "a list's entry stands among keys"),
    ],
)
def test_a_mistake_of_yaml_is_told_in_plain_words_where_it_is(
    catalogue: Catalogue, recipe: Write, text: str, line: int, told: str
) -> None:
    recipe("broken", text)
    fault = only(faults(catalogue, "recipe=broken"))
    assert fault.startswith(f"recipes/broken.yaml:{line}: {told}")


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("run.seed 3", "is no key=value"),
        ("task.out=[a,b", "has a [ without its ]"),
        ("task.out={a:1", "has a { without its }"),
        ("task.out=a)", "has a ) without its ("),
        ("task.out='a", "a ' is not closed"),
        ("--run.seed=3", "a value is set without dashes: run.seed=VALUE"),
        ("=3", "'' is no key"),
        ("run..seed=3", "'run..seed' is no key: write names with dots between them"),
        ("task.out=a b=c", "quote it: \"task.out='a b=c'\""),
    ],
)
def test_an_override_that_does_not_parse_is_told_with_its_remedy(catalogue: Catalogue, word: str, told: str) -> None:
    fault = only(faults(catalogue, "recipe=toy", word))
    assert fault.startswith(f"command line {word}: ")
    assert told in fault


@pytest.mark.attack("plugin", "the component of a plugin that the recipe does not enable", "refused")
def test_a_plugin_must_be_enabled_and_must_exist(catalogue: Catalogue, recipe: Write) -> None:
    recipe("closed", "defaults: [toy, _self_]\nplugins: [toy_task]\n")
    found = faults(catalogue, "recipe=closed")
    assert any("toy_tasks.tasks.Task: belongs to a plugin that the recipe does not enable" in fault for fault in found)
    assert any("no plugin 'toy_task'" in fault and "(did you mean toy_tasks?)" in fault for fault in found)
    assert len(found) == 2


def test_a_mistyped_recipe_names_the_nearest(catalogue: Catalogue) -> None:
    fault = only(faults(catalogue, "recipe=toy_fst"))
    assert fault.endswith("there are: toy, toy_fast (did you mean toy_fast?)")


def test_a_line_that_repeats_the_base_is_a_warning(catalogue: Catalogue, recipe: Write) -> None:
    recipe("pair", "defaults: [toy, _self_]\ntask:\n  betas: [0.8, 0.9]\n")
    recipe("wordy", "defaults: [pair, _self_]\nrun:\n  seed: 0\ntask:\n  betas: [0.8, 0.95]\n")
    _, problems = check(["recipe=wordy"], catalogue)
    assert [str(problem) for problem in problems] == [
        "warning: recipes/wordy.yaml:4 run.seed: repeats the base; leave it out"
    ]


def test_five_planted_mistakes_are_listed_without_importing_torch(tree: Path, recipe: Write) -> None:
    recipe(
        "five",
        """\
        defaults:
          - toy
          - _self_
        optimizer:
          lrr: 0.1
        task:
          steps: many
          shards: no/such/folder
          out: ${paths.rnus}
        loader:
          _target_: torch.load
        """,
    )
    program = (
        "import sys; from pathlib import Path; from framework.__main__ import main\n"
        "from framework.recipe.catalogue import Catalogue\n"
        "code = main(sys.argv[1:], Catalogue(Path.cwd()))\n"
        "assert not {'torch', 'lightning', 'transformers'} & set(sys.modules)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "check", "recipe=five"], cwd=tree, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    for place in ("6 optimizer.lrr", "8 task.steps", "9 task.shards", "10 task.out", "12 loader._target_"):
        assert f"recipes/five.yaml:{place}: " in done.stdout
    assert len(done.stdout.splitlines()) == 6, done.stdout
    assert done.stdout.splitlines()[-1].startswith("five: 5 problems")


def test_missing_recordings_are_told_once_with_the_way_to_lay_ones_own_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RECORDINGS", raising=False)
    monkeypatch.chdir(tmp_path)
    (problem,) = faults(Catalogue(), "recipe=sft_drive")
    assert "there is no file or folder 'recordings'" in problem
    assert "lay recordings of your own there (kitti_*/" in problem
    assert "or set RECORDINGS" in problem


def test_missing_conversations_are_told_with_the_way_to_lay_ones_own_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CONVERSATIONS", raising=False)
    monkeypatch.chdir(tmp_path)
    problem, *_ = [each for each in faults(Catalogue(), "recipe=sft_mixed") if "conversations" in each]
    assert "there is no file or folder 'conversations'" in problem
    assert "lay conversations of your own there (*.json, *.jsonl or *.parquet, next to their images)" in problem
    assert "or set CONVERSATIONS" in problem


@pytest.mark.slow
def test_evals_that_are_not_chosen_take_their_values_with_them() -> None:
    for words in (["evals=[zero_shot]"], ["evals=[]"], ["evals=none"]):
        composition, faults_ = check(["recipe=demo", *words])
        assert faults_ == []
        assert composition is not None
        assert "held_out" not in composition.tree["evals"]
