"""The surface of recipes: a stage, parts and evals by name, curricula as lists; and each fault of it in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.recipe.catalogue import Catalogue
from framework.recipe.check import check
from framework.recipe.compose import compose
from framework.recipe.former_surface import former_lines
from framework.recipe.safe_yaml import read_nodes
from framework.recipe.show import compared, diff
from tests.recipe.own_recipes import HEADER, Written, problems_of

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = sorted(REPOSITORY.glob("recipes/*.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_fits_on_a_screen_and_says_what_it_is_for(file: Path) -> None:
    lines = file.read_text().splitlines()
    head = lines[: lines.index("# @package _global_")]
    assert len(lines) <= 40
    assert not any("_target_" in line for line in lines)
    assert sum("@" in line for line in lines) == 1
    assert f"python -m framework recipe={file.stem}" in head[1]
    assert any("Expect" in line for line in head)


def test_both_spellings_reach_the_stage() -> None:
    for key in ("stage", "curriculum.stages.rl"):
        tree = compose(["recipe=rl_dapo", f"{key}.lr=2e-6", f"{key}.data.hard.tasks.drive=0.5"]).tree
        stage = tree["curriculum"]["stages"]["rl"]
        assert (stage["lr"], stage["mixture"]["parts"]["hard"]["tasks"]) == (2e-6, {"drive": 0.5})
        assert "stage" not in tree


def test_parts_are_chosen_by_name_and_off_by_none() -> None:
    words = [
        "recipe=rl_dapo",
        "stage/sampler=vllm",
        "stage/filter=none",
        "evals=[held_out]",
        "sources.world_hard.scenes=64",
    ]
    tree = compose(words).tree
    stage = tree["curriculum"]["stages"]["rl"]
    assert stage["sampler"]["_target_"] == "framework.training.rl.engine.vllm.VLLMEngine"
    assert stage["filter"] is None
    assert list(tree["evals"]) == ["held_out"]
    assert stage["mixture"]["parts"]["hard"]["source"]["scenes"] == 64


@pytest.mark.parametrize("evals", ["[]", "[none]"])
def test_evals_can_be_left_out(evals: str) -> None:
    assert compose(["recipe=rl_dapo", f"evals={evals}"]).tree["evals"] == {}


def test_the_scale_reaches_the_stage_by_its_kind() -> None:
    rl = compose(["recipe=rl_dapo", "scale=tiny"]).tree["curriculum"]
    stage = rl["stages"]["rl"]
    assert (rl["max_steps_per_stage"], stage["global_batch"], stage["lr"]) == (100, 16, 3e-5)
    assert stage["objective"]["temperature"] == 0.5
    tree = compose(["recipe=sft_broad", "scale=tiny"]).tree
    assert (tree["curriculum"]["max_steps_per_stage"], tree["data"]["global_batch"]) == (10, 8)


def test_a_curriculum_lists_recipes() -> None:
    composition = compose(["recipe=curriculum", "scale=tiny", "curriculum.stages.rl.lr=1e-6", "paths.cache=elsewhere"])
    stages = composition.tree["curriculum"]["stages"]
    assert list(stages) == ["broad", "quality", "rl"]
    assert composition.tree["curriculum"]["max_steps_per_stage"] == 10
    assert (stages["rl"]["lr"], stages["rl"]["global_batch"]) == (1e-6, 16)
    assert stages["quality"]["mixture"]["parts"]["hard"]["source"]["cache"] == "elsewhere"
    assert composition.origin(("curriculum", "stages", "quality", "lr")).file == "recipes/sft_quality.yaml"


def test_a_curriculum_may_differ_from_its_recipes(written: Written) -> None:
    text = (
        HEADER
        + "curriculum:\n  recipes: [sft_broad]\n  stages: {broad: {data: {more: {source: x, tasks: {drive: 1.0}}}}}\n"
    )
    tree = compose(["recipe=own"], written("own", text)).tree
    parts = tree["curriculum"]["stages"]["broad"]["mixture"]["parts"]
    assert {name: part["_target_"].rpartition(".")[2] for name, part in parts.items()} == {
        "world": "Part",
        "more": "Part",
    }


@pytest.mark.slow
def test_a_curriculum_chooses_parts_where_it_lists_a_recipe(written: Written) -> None:
    text = HEADER + "curriculum:\n  recipes: [sft_broad stage/optimizer=muon, sft_quality]\n"
    composition = compose(["recipe=own"], written("own", text))
    targets = {name: stage["optimizer"]["_target_"] for name, stage in composition.tree["curriculum"]["stages"].items()}
    assert targets == {"broad": "framework.training.muon.Muon", "quality": "torch.optim.AdamW"}
    listing = "curriculum.recipes=['sft_broad stage/optimizer=muon',sft_quality]"
    title, old, new = compared(["recipe=supervised", listing], Catalogue())
    assert title == "the base with sft_broad stage/optimizer=muon, sft_quality"
    assert "optimizer" not in diff(old, new)
    _, old, new = compared(["recipe=supervised", listing, "against=supervised"], Catalogue())
    assert "broad.optimizer._target_: torch.optim.AdamW -> framework.training.muon.Muon" in diff(old, new)
    assert "curriculum.stages.quality" not in diff(old, new)


FAULTS = {
    ("supervised", "stage/optimizer=muon"): "a curriculum chooses a part where it lists the recipe: recipes: [NAME sta",
    ("supervised", "+stage/optimizer=muon"): "command line stage/optimizer: the recipe has no stage of its own",
    ("sft_drive", "stage/sampler=vllm"): "command line stage/sampler: a stage of the kind sft has no such part",
    (
        "demo",
        "curriculum.stages.broad.optimizer=muon",
    ): "or of a stage that is listed, curriculum.recipes=['RECIPE stage/optimizer=muon']",
    ("demo", "curriculum.recipes=['sft_broad stage.lr=3',sft_quality]"): "stage.lr=3 chooses no part of a stage",
    (
        "rl_dapo",
        "scale=tny",
    ): "command line scale: no preset 'tny' in scale/; there are: full, tiny (did you mean tiny?)",
    ("rl_dapo", "stage/filter=null"): "command line stage/filter: null chooses nothing; write stage/filter=none",
    ("rl_dapo", "stage.objective=dapo"): "write stage/objective=dapo",
    ("rl_dapo", "+stage/objectiv=dapo"): "there is no group stage/objectiv/ in conf/ (did you mean stage/objective?)",
    ("rl_dapo", "stage=sft"): "whose choices mean nothing then: stage/objective: dapo",
    ("rl_dapo", "evals=[held_out,held_out]"): "names a preset twice",
    ("rl_dapo", "evals=[held_oat]"): "(did you mean held_out?)",
    ("rl_grpo", "stage.filter.floor=0.1"): "stage.filter is null: choose a preset of it first",
    ("rl_dapo", "stage=3"): "command line stage: 3 is no preset's name; there are: none, rl, sft",
    ("rl_dapo", "recipe=rl_gspo"): "command line recipe: is given 2 times: rl_dapo, rl_gspo; leave all but one out",
    ("rl_dapo", "stage.data=[hard]"): "command line stage.data: must be a mapping of its keys, not a list",
    ("curriculum", "stage.lr=1"): "of a curriculum's stages, write curriculum.stages.broad",
    ("curriculum", "curriculum.recipes=[rl_dapo,rl_gspo]"): "rl_dapo and rl_gspo both have a stage rl",
}


def test_a_fault_of_listed_recipes_is_where_they_are_listed() -> None:
    (clash, *_) = problems_of(None, "recipe=curriculum", "curriculum.recipes=[rl_dapo,rl_gspo]")
    assert clash.startswith("command line curriculum.recipes: rl_dapo and rl_gspo both have a stage rl")


@pytest.mark.parametrize("words", FAULTS, ids=" ".join)
@pytest.mark.slow
def test_a_choice_that_means_nothing_is_refused(words: tuple[str, str]) -> None:
    recipe, word = words
    found = problems_of(None, f"recipe={recipe}", word)
    assert any(FAULTS[words] in problem for problem in found), found


FILES = {
    "defaults:\n  - _self_\n  - rl_dapo\nstage: {steps: 3}\n": "3 defaults._self_: the recipe's own values would lose",
    "defaults:\n  - own\n": "3 defaults.own: the file includes itself",
    "defaults:\n  - override stage: rl\n": "3 defaults.stage: a group is named from the root of",
    "defaults:\n  - override /stage: rl\n  - /rewards@x: driving\n": "4 defaults.rewards: overrides come last",
    "defaults:\n  - rl_dapo\n  - override /stage: sft\n": "4 defaults./stage: sft replaces rl",
    "defaults:\n  - rl_dapo\nstage: {objective: dapo}\n": "4 stage.objective: sets the component to a word",
    "defaults:\n  - rl_dapo\nstage: {lr: '${..x}'}\n": "4 stage.lr: ${..x} leads out of the stage",
    "defaults:\n  - supervised\ncurriculum: {stages: {brod: {lr: 1.0}}}\n": "4 curriculum.stages.brod: no listed",
    "curriculum: {recipes: [sft_brod]}\n": "2 curriculum.recipes: no such recipe: sft_brod",
    "curriculum: {recipes: [sft_broad stage/optimizer=mun]}\n": "2 stage/optimizer: no preset 'mun'",
    "defaults:\n  - supervised\n  - /stage/optimizer: muon\n": "4 defaults./stage/optimizer: the recipe has no stage",
    "defaults:\n  - supervised\n  - override /recipe: demo\n": "4 defaults./recipe: a recipe does not replace itself",
    "curriculum:\n  recipes: [sft_broad]\n  stages: {broad: {optimizer: muon}}\n": (
        "4 curriculum.stages.broad.optimizer: sets the component to a word; choose a preset where the recipe is listed"
    ),
    "just a word\n": "2: must be a mapping",
    "- rl_dapo\n- _self_\n": "2: must be a mapping",
    "defaults: rl_dapo\n": "2 defaults: must be a list, an entry to a line",
    "defaults:\n  - override /stage: rl\n    override /data: small\n": "3 defaults: an entry is one name or one choice",
    "defaults:\n  - recipes/rl_dapo\n": "3 defaults.recipes/rl_dapo: a recipe is listed by its name",
    "defaults:\n  - rl_dapo\n  - stage/filter: none\n": "4 defaults.stage/filter: this choice replaces an earlier",
    "defaults:\n  - rl_dapo\noverride /stage/filter: none\n": "4 override /stage/filter: is an entry of the defaults",
    "defaults:\n  - rl_dapo\nstage.lr: 1.0e-6\n": "4 stage.lr: a dot does not lead into a mapping in a file; write st",
    "defaults:\n  - rl_dapo\nstage: {data: {hard.passes: 2}}\n": "4 stage.data.hard.passes: a dot does not lead into",
    "curriculum: {recipes: [own]}\n": "2 curriculum.recipes: own leads back to this curriculum",
}


@pytest.mark.parametrize("text", FILES)
@pytest.mark.fast_cases(6)
def test_a_line_that_would_be_ignored_is_reported(text: str, written: Written) -> None:
    found = problems_of(written("own", HEADER + text), "recipe=own")
    assert len(found) <= 3, "a fault is told once, next to what the recipe lacks"
    assert any(problem.startswith(f"recipes/own.yaml:{FILES[text]}") for problem in found), found


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("defaults:\n  - override /stage: sft\nstage:\n  lr: 1.0e-6\n", ":5 stage.steps: must be given"),
        ("defaults:\n  - override /stage: sft\n", " stage.steps: must be given"),
    ],
)
def test_a_missing_value_is_asked_of_the_recipe(text: str, place: str, written: Written) -> None:
    found = problems_of(written("own", HEADER + text), "recipe=own")
    assert any(problem.startswith(f"recipes/own.yaml{place}") for problem in found), found


@pytest.mark.slow
def test_a_derived_recipe_is_an_extra_stage(written: Written) -> None:
    written("sft_polish", f"{HEADER}defaults: [sft_quality, _self_]\nstage: {{name: polish, steps: 500, lr: 2.0e-6}}\n")
    listing = "curriculum: {recipes: [sft_broad, sft_quality, sft_polish, rl_dapo]}\n"
    catalogue = written("curriculum_polished", f"{HEADER}defaults: [curriculum, _self_]\n{listing}")
    assert check(["recipe=curriculum_polished"], catalogue)[1] == []
    stages = compose(["recipe=curriculum_polished"], catalogue).tree["curriculum"]["stages"]
    assert list(stages) == ["broad", "quality", "polish", "rl"]
    assert (stages["quality"]["steps"], stages["polish"]["steps"]) == (2000, 500)


@pytest.mark.slow
def test_what_a_listed_recipe_loses_is_told(written: Written) -> None:
    listing = "curriculum: {recipes: [rl_dapo]}\n"
    folder = written("bare", HEADER + listing)
    told = [str(problem) for problem in check(["recipe=bare"], folder)[1] if problem.warning]
    assert any("defaults./evals: simulated_hard has no effect in bare" in each for each in told), told
    assert any("init_from: ${paths.supervised} has no effect in bare, which starts from the" in each for each in told)
    chosen = f"defaults:\n  - override /evals: [simulated_hard]\n{listing}init_from: ${{paths.supervised}}\n"
    told = [str(problem) for problem in check(["recipe=bare"], written("bare", HEADER + chosen))[1]]
    (only,) = [each for each in told if "has no effect" in each]
    assert "evals.simulated_hard.before_training: True has no effect in bare" in only
    assert not [problem for problem in check(["recipe=curriculum"])[1] if "has no effect" in str(problem)]


def test_a_forgotten_override_is_told_with_its_line_and_the_rest_is_checked(written: Written) -> None:
    text = "defaults:\n  - rl_dapo\n  - /stage/filter: none\n  - _self_\nstage: {lrr: 1.0}\n"
    assert problems_of(written("again", HEADER + text), "recipe=again") == [
        "recipes/again.yaml:4 defaults.stage/filter: this choice replaces an earlier one; write override /stage/filter",
        "recipes/again.yaml:6 stage.lrr: framework.training.rl.stage.PolicyStage takes no argument"
        " 'lrr' (did you mean lr?)",
    ]


def test_a_stage_that_no_listed_recipe_has_is_one_fault(written: Written) -> None:
    text = "curriculum:\n  recipes: [sft_broad]\n  stages:\n    quality: {lr: 1.0e-5}\n"
    text += "defaults:\n  - override /evals: [held_out]\n"
    (problem,) = problems_of(written("strange", HEADER + text), "recipe=strange")
    assert problem.endswith("curriculum.stages.quality: no listed recipe has a stage of this name; there are: broad")


def test_a_task_that_the_data_lack_is_a_fault_where_it_is_written(written: Written) -> None:
    text = "curriculum:\n  recipes: [sft_broad]\n  stages:\n    broad: {data: {world: {tasks: {detekt: 0.1}}}}\n"
    text += "defaults:\n  - override /evals: [held_out]\n"
    (problem,) = problems_of(written("mine", HEADER + text), "recipe=mine")
    place, _, said = problem.partition(": Train refuses it: ")
    assert place.endswith("mine.yaml:5 curriculum.stages.broad.data.world.tasks.detekt")
    assert said.startswith("['detekt'] are no tasks of the data")
    assert said.endswith("(did you mean detect?)")


def test_a_camera_that_is_named_twice_is_found_before_a_run() -> None:
    (problem,) = problems_of(None, "recipe=sft_broad", "data.cameras=[front,front]")
    assert "data.cameras: DataPipeline refuses it" in problem


DRAWN = ("recipe=rl_dapo", "model.action_head.sample_noise=0.5")
HEADLESS = {
    ("recipe=sft_broad", "parallel.mesh.tensor=2"): "parallel.mesh.tensor: Train refuses it: tensor parallelism does",
    ("recipe=rl_dapo",): "stage: Train refuses it: reinforcement learning needs the density",
    (*DRAWN, "stage/sampler=vllm"): "stage.sampler: Train refuses it: only the model in training has the action head",
    (*DRAWN, "stage.data.hard.tasks={reason: 1.0}"): "refuses it: reason answers in tokens, and a stage of",
    (*DRAWN, "stage.objective.entropy_weight=0.1"): "0.1; the entropy of an action head's steps is that of their",
    ("recipe=sft_broad", "model.action_head.tasks=[driv]"): "(did you mean drive?)",
}
"""What does not go together with an action head."""


@pytest.mark.slow
def test_rollouts_ahead_need_an_engine_with_weights_of_its_own() -> None:
    asleep = (("vllm", "stage.sampler.sleeps=true"), ("vllm_fleet", "stage.sampler.engines.second.sleeps=true"))
    for engine, *words in (("embedded",), *asleep):
        (problem,) = problems_of(None, "recipe=rl_dapo", "stage.async_rollout=true", f"stage/sampler={engine}", *words)
        assert "async_rollout: Train refuses it: the sampler has no weights and memory of its own" in problem
    for engine in ("vllm", "vllm_fleet"):
        assert problems_of(None, "recipe=rl_dapo", "stage.async_rollout=true", f"stage/sampler={engine}") == []


@pytest.mark.parametrize("words", HEADLESS)
@pytest.mark.fast_cases(2)
def test_what_an_action_head_does_not_go_with_is_refused(words: tuple[str, ...]) -> None:
    (problem,) = problems_of(None, *words, "model/action_head=flow")
    assert HEADLESS[words] in problem


def test_what_a_listed_recipe_sets_in_vain_is_said(written: Written) -> None:
    text = HEADER + "defaults:\n  - rl_dapo\n  - override /model/backbone: tiny\ndata: {micro_batch: 3}\n"
    written("listed", text)
    found = problems_of(written("own", HEADER + "curriculum: {recipes: [listed]}\n"), "recipe=own")
    assert any(problem.startswith("warning: recipes/listed.yaml:4 defaults./model/backbone") for problem in found)
    assert any(problem.startswith("warning: recipes/listed.yaml:5 data.micro_batch") for problem in found)


FORMER = """\
defaults:
  - /training/stage@curriculum.stages.rl: rl
  - /objective/filter@curriculum.stages.rl.filter: spread
  - /data/source@curriculum.stages.rl.mixture.parts.hard.source: world_hard
  - /training/evals@evals.simulated: simulated
task: {init_from: x}
sizes: {policy_lr: 1.0}
curriculum: {_target_: framework.training.stages.Curriculum}
"""


def test_a_former_recipe_is_told_what_its_lines_become(tmp_path: Path) -> None:
    (tmp_path / "former.yaml").write_text(FORMER)
    becomes = [str(each) for each in former_lines(read_nodes(tmp_path / "former.yaml", "f"), "f")]
    for number, text in enumerate(
        (
            "- override /stage: rl",
            "- override /stage/filter: spread",
            'stage: {data: {hard: {source: "${sources.world_hard}"}}}',
            "- override /evals: [simulated_hard]",
            "becomes init_from",
            "becomes stage.lr",
            "is left out",
        ),
        2,
    ):
        assert any(each.startswith(f"f:{number} ") and text in each for each in becomes), (text, becomes)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("held_out", "held_out is no EVAL/SECTION/METRIC"),
        ("held_out/drive", "held_out/drive is no EVAL/SECTION/METRIC"),
        ("held_out/drvie/ade", "has no section drvie; it has drive, detect, answer (did you mean drive?)"),
        ("held_out/caption/word_f1", "has no section caption"),
        ("held_out/drive/aed", "section drive has no metric aed; it has ade, fde"),
        ("held_out/drive/accuracy", "section drive has no metric accuracy"),
        ("held_ot/drive/ade", "there is no eval held_ot (did you mean held_out?)"),
    ],
)
@pytest.mark.slow
def test_a_metric_that_no_evaluation_computes_is_refused(metric: str, message: str) -> None:
    (problem,) = check(["recipe=demo", f"search_metric={metric}"])[1]
    assert str(problem).replace("warning: ", "").startswith("command line search_metric: ")
    assert message in str(problem)


@pytest.mark.parametrize(
    "metric", ["held_out/detect/ap/car/2m", "held_out/answer/accuracy/lead", "zero_shot/drive/fde"]
)
@pytest.mark.fast_cases(1)
def test_a_metric_that_an_evaluation_computes_is_taken(metric: str) -> None:
    assert check(["recipe=demo", f"search_metric={metric}"])[1] == []


@pytest.mark.slow
def test_a_metric_of_an_eval_that_is_not_chosen_is_refused() -> None:
    (problem,) = check(["recipe=supervised", "search_metric=closed_loop/drive/ade"])[1]
    told = "the recipe does not choose the eval closed_loop; add evals=[held_out,zero_shot,closed_loop]"
    assert str(problem) == f"command line search_metric: {told}"
    assert check(["recipe=demo", "evals=[]"])[1] == [], "the recipe's own metric, whose eval the command line drops"


def test_a_value_that_the_curriculum_refuses_too_is_one_fault() -> None:
    _, problems = check(["recipe=rl_dapo", "stage.steps=-3", "init_from=null"])
    (fault,) = [problem for problem in problems if not problem.warning]
    assert str(fault).startswith("command line stage.steps: must be an integer from 1")


def test_values_of_an_eval_that_a_recipe_does_not_choose_are_told(written: Written) -> None:
    values = "defaults: [sft_broad, _self_]\nevals: {simulated_hard: {befor_training: true}}\n"
    recipe = f"# Values of an eval that is not chosen.\n{HEADER}{values}"
    (told,) = check(["recipe=odd"], written("odd", recipe))[1]
    assert told.warning
    assert str(told).startswith("warning: recipes/odd.yaml:4 evals.simulated_hard: ")
    assert "has no effect, as the recipe does not choose it" in str(told)
    assert check(["recipe=odd", "evals=[held_out]"], written("odd", recipe))[1] == [], "the command line chose"
