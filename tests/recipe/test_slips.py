"""Slips on the command line and in a recipe: each is told once, in one line, with its place and the right key."""

from __future__ import annotations

import pytest

from tests.recipe.own_recipes import HEADER, Written, problems_of

SLIPS = {
    ("sft_broad", "evals.closed_loop.scenes=4"): (
        "the recipe does not choose closed_loop of evals/; add evals=[held_out,zero_shot,closed_loop]"
    ),
    ("sft_broad", "evals.closed_lop.scenes=4"): "zero_shot,closed_loop] (did you mean evals.closed_loop.scenes?)",
    ("sft_broad", "model.encoders.calibration.width=4"): "add model/encoders=[lidar,radar,boxes,ego,calibration]",
    ("sft_broad", "stage.data.wrld.passes=2"): (
        "no stream of the stage has this name; there are: world; a new one needs its source and tasks "
        "(did you mean stage.data.world?)"
    ),
    ("sft_broad", "stage.data.world.share=half"): "takes no argument 'share'; it takes source, tasks, proportion, ",
    (
        "sft_broad",
        "stage.data.world.proportion=half",
    ): "must be a number from 1e-09 to 1e+06 or a mapping or null, not ",
    ("sft_broad", "stage.data.world.tasks.drive=half"): "must be a number from 1e-09 to 1e+06 or null, not text (half)",
    ("sft_broad", "stage.data.world.tasks.detect=-1"): "must be a number from 1e-09 to 1e+06 or null, not an integer",
    (
        "sft_broad",
        "stage.tasks.drive=1",
    ): "it takes data, optimizer, schedule, steps, lr, weight_decay, warmup_share, cl",
    ("sft_broad", "stage.world.passes=1"): "takes no argument 'world'; it takes data, optimizer, ",
    ("sft_broad", "stag.lr=1"): "there is no such key (did you mean stage.lr?)",
    ("sft_broad", "lr=1"): "there is no such key (did you mean stage.lr?)",
    ("sft_broad", "stage.lr="): "must be a number from 1e-12 to 10, not nothing",
    ("sft_broad", "stage/optimizer=dapo"): "there are: adamw, adamw_kahan, muon; dapo is one of stage/objective/",
    ("supervised", "stage.lr=1"): "write curriculum.stages.broad.lr, curriculum.stages.quality.lr",
    ("supervised", "curriculum.stages.brod.lr=1"): "(did you mean curriculum.stages.broad.lr?)",
    ("supervised", "curriculum.recipes=[sft_broad,sft_quality,sft_broad]"): "sft_broad is listed twice",
}
"""Words of the command line, and what the only line on each says behind its key."""


@pytest.mark.parametrize("recipe", ["sft_broad", "supervised"])
def test_each_slip_of_the_command_line_is_one_line_with_the_right_key(recipe: str) -> None:
    told = {word: said for (of, word), said in SLIPS.items() if of == recipe}
    found = problems_of(None, f"recipe={recipe}", *told)
    for word, said in told.items():
        keys = {each.removeprefix("command line ").partition(": ")[0]: each for each in found if said in each}
        assert [key for key in keys if word.startswith((f"{key}.", f"{key}="))], (word, found)
    assert len(found) == len(told)


PLANTED = [
    {
        "run: {seed: x}": "run.seed: must be an integer from 0",
        "data: {cameras: front}": "data.cameras: must be a list or null, not text (front)",
        "checkpoint: {evry: 5}": "takes no argument 'evry' (did you mean every?)",
        "init_from: 3": "init_from: must be text or null, not an integer (3)",
        "plugins: polar_lidar": "plugins: must be a list",
        "model: {encoders: {lidr: {channels: 3}}}": "(did you mean model.encoders.lidar?)",
    },
    {"stage: lr 1e-5": "stage: must be a mapping of its keys, each written 'key: value', not text (lr 1e-5)"},
    {
        "stage: {data: [world]}": "stage.data: must be a mapping of its keys",
        "evals: [held_out]": "evals: a list chooses nothing here; choose a preset in the defaults: '- override /ev",
        "curriculum: [sft_broad]": "curriculum: must be a mapping of its keys",
        "model: {backbone: tiny}": "model.backbone: sets the component to a word; choose a preset in the defaults",
    },
    {
        "stage:": "",
        "  lr: {high: 3}": "stage.lr: must be a number from 1e-12 to 10, not a mapping",
        "  data:": "",
        "    wrld: {passes: 2}": "stage.data.wrld: no stream of the stage has this name; there are: world",
        "    world: {proportion: -1, source: world_train}": '(did you mean "${sources.world_train}"?)',
        "evals: {closed_lop: {scenes: 3}}": "evals.closed_lop: there is no eval closed_lop (did you mean evals.closed",
        "search_metric: closed_loop/drive/ade": "add '- override /evals: [held_out,zero_shot,closed_loop]'",
        "steps: 3": "and nothing interpolates it (did you mean stage.steps?)",
    },
]
"""Lines of recipes that derive from `sft_broad`, and what the check says of each."""


@pytest.mark.parametrize("lines", PLANTED, ids=lambda lines: next(iter(lines)))
@pytest.mark.fast_cases(1)
def test_each_slip_in_a_recipe_is_one_line_with_its_place(lines: dict[str, str], written: Written) -> None:
    text = f"{HEADER}defaults: [sft_broad, _self_]\n" + "".join(f"{line}\n" for line in lines)
    found = problems_of(written("own", text), "recipe=own")
    for number, (line, said) in enumerate(lines.items(), 3):
        told = [problem for problem in found if problem.startswith(f"recipes/own.yaml:{number} ")]
        assert len(told) == (0 if not said else 2 if "-1, " in line else 1), told
        assert not said or any(said in problem for problem in told), told
    assert all(problem.startswith("recipes/own.yaml:") for problem in found)


def test_five_faults_are_reported_at_once(written: Written) -> None:
    defaults = (
        "defaults:\n  - rl_dap\n  - optional override /stage/filtr: spread\n  - override /stage/objective: dap0\n"
    )
    catalogue = written("own", HEADER + defaults + "stage: {stepz: 3}\ndata: {micro_bach: 2}\n")
    found = problems_of(catalogue, "recipe=own")
    assert [problem.partition(":")[2].partition(" ")[0] for problem in found] == ["3", "4", "5", "6", "7"]
    near = ["rl_dapo", "stage/filter", "dapo", "steps", "micro_batch"]
    assert all(name in problem.rpartition("did you mean ")[2] for name, problem in zip(near, found, strict=True))
