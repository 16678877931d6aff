"""Finds everything that is wrong with a recipe before anything of it is imported (contract 10).

The keys of a component are its target's arguments. Any other key must be declared by a file below `conf/` or be read:
it lies below `task` or `launch`, is `run.name`, `run.folder` or `plugins`, or is interpolated from one of these.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from framework.recipe.allow import refusal, refusal_of_definition
from framework.recipe.annotation import NO_FILE, is_component
from framework.recipe.apply import end_of
from framework.recipe.arguments import READ_BY, REFUSES, argument_faults, root_faults, strays
from framework.recipe.defaults import RECIPE
from framework.recipe.exposure import NOT_SECRET, exposures
from framework.recipe.figures import metric_problems
from framework.recipe.layers import MISSING, child, children, leaves, settings, value_at
from framework.recipe.offers import missing_fields
from framework.recipe.overrides import COMMAND_LINE
from framework.recipe.problem import Key, Origin, Problem, dotted, nearest
from framework.recipe.resolve import read_keys, references
from framework.recipe.run_folder import folder_faults
from framework.recipe.signature import NoSuchTarget, declares_component, locate
from framework.recipe.variables import refused_calls

if TYPE_CHECKING:
    from framework.recipe.composition import Composition

ROOTS: tuple[Key, ...] = (
    ("task",),
    ("launch",),
    ("run", "name"),
    ("run", "folder"),
    ("plugins",),
    (NOT_SECRET,),
    ("search_metric",),
    ("search_direction",),
)
"""What the command itself reads. Everything else must be interpolated from here."""
MAPPINGS, LISTS = ("run", "paths", "task", "launch"), ("plugins", NOT_SECRET)
"""The forms of the root nodes that the command reads."""


def findings(composition: Composition) -> list[Problem]:
    """All problems and warnings of the recipe, those of composing included, collected once, however many ask."""
    if composition.cached_findings is None:
        composition.cached_findings = composition.spoken(examine(composition))
    return composition.cached_findings


def examine(composition: Composition) -> list[Problem]:
    """All problems and warnings of a composed recipe, in the order of their files and lines."""
    tree = composition.tree
    if hidden := list(exposures(composition)):
        return hidden  # other messages might contain their values
    malformed = list(_malformed(composition))
    unsafe = [problem for problem in malformed if problem.key in MAPPINGS] + list(_hiding_plugins(composition))
    if unsafe:  # the other checks read these nodes, and find modules by name
        return [*composition.problems, *dict.fromkeys([*malformed, *unsafe])]
    read = read_keys(composition.raw, ROOTS)
    problems = [*composition.problems, *malformed]
    composed = {problem.key for problem in problems if problem.key}  # these say the cause; a component, what follows
    problems += _interpolations(composition)
    problems += _calls(composition)
    problems += [*_missing(composition, read), *strays(composition)]
    keys = {problem.key for problem in problems}
    problems += [problem for problem in _unread(composition, read) if problem.key not in keys]
    problems += _overridden_in_vain(composition, read)
    problems += _plugins(composition)
    plugins = enabled_plugins(composition)
    for key in _components(composition.raw):
        for problem in _component(composition, key, value_at(tree, key), plugins):
            # Of a component that nothing reads, files need not exist, and nobody calls the constructor.
            unheard = problem.message.startswith(NO_FILE) or REFUSES in problem.message
            if (key in read or not unheard) and problem.key not in composed:
                problems.append(problem)
    known = {problem.key for problem in malformed}
    problems += [problem for problem in root_faults(composition) if problem.key not in known]
    problems += folder_faults(composition)
    problems += metric_problems(composition)
    if not any(not problem.warning for problem in problems):  # what is faulty tells nothing of what it lacks
        problems += missing_fields(composition)
    if "task" not in composition.raw:
        problems.append(Problem(composition.origin(("task",)), "task", "the recipe has no task to run"))
    problems += _repetitions(composition)
    problems = _without_echoes(problems)
    unique = {_identity(problem): problem for problem in reversed(problems)}
    return sorted(
        unique.values(),
        key=lambda problem: (problem.warning, problem.origin.file, problem.origin.line or 0, problem.key),
    )


def _without_echoes(problems: list[Problem]) -> list[Problem]:
    """`problems` without refusals that repeat the fault of the same value, or of one further down, which they name from
    the root or from the component on.
    """
    told = [problem.key for problem in problems if problem.key and REFUSES not in problem.message]

    def repeats(problem: Problem) -> bool:
        named = problem.message.partition(f"{REFUSES}: ")[2].partition(": ")[0]
        if problem.key in told:
            return True
        below = (key for key in told if key.startswith(f"{problem.key}."))
        return any(f"{key}:" in problem.message or (named and key.endswith(f".{named}")) for key in below)

    return [problem for problem in problems if REFUSES not in problem.message or not repeats(problem)]


def _identity(problem: Problem) -> object:
    """What makes a problem another one. A missing file is one, however many components are to read it."""
    missing, *_ = problem.message.partition(READ_BY)
    return (problem.origin, missing) if missing.startswith(NO_FILE) else problem


def enabled_plugins(composition: Composition) -> list[str]:
    """The plugins that the recipe enables, of those that exist."""
    names = composition.tree.get("plugins")
    there = [plugin.name for plugin in composition.catalogue.plugins()]
    return [name for name in names if name in there] if isinstance(names, list) else []


def _components(raw: Any, below: Key = ()) -> Iterator[Key]:
    if is_component(raw):
        yield below
    for name, value in children(raw):
        yield from _components(value, (*below, name))


def _interpolations(composition: Composition) -> Iterator[Problem]:
    known = {dotted(key[:depth]) for key, _ in leaves(composition.raw) for depth in range(1, len(key) + 1)}
    written = {composition.place(key): reason for key, reason in reversed(composition.failed_interpolations.items())}
    for key, reason in reversed(written.items()):
        raw = value_at(composition.raw, key)
        dangling = [dotted(each) for each in references(raw, key) if dotted(each) not in known]
        near = nearest(dangling[0], known) if dangling else None
        yield Problem(composition.origin(key), dotted(key), f"the interpolation {raw} fails: {reason}", near)


def _missing(composition: Composition, read: set[Key]) -> Iterator[Problem]:
    for key, raw in leaves(composition.raw):
        if raw == MISSING and key in read:
            yield Problem(_giver(composition, key), dotted(key), "must be given: no recipe and no override sets it")


def _giver(composition: Composition, key: Key) -> Origin:
    """Where the missing value at `key` is to be given: in the recipe, at its first line that says anything of what is
    around; else in a recipe that it derives from or lists. A preset says no more than that it is needed.
    """
    recipes = {layer.name: layer for layer in reversed(composition.layers) if not layer.declares}
    asked = composition.origin(key)
    if not recipes or asked.file in recipes:
        return asked
    own = next((name for name, layer in recipes.items() if layer.config_path == f"{RECIPE}/{composition.recipe}"), None)
    for depth in range(len(key) - 1, 0, -1):
        around = [origin for other, origin in composition.origins.items() if other[:depth] == key[:depth]]
        if said := [origin for origin in around if origin.file in recipes]:
            return min(said, key=lambda origin: (origin.file != own, origin.line or 0))
    return asked if own is None else Origin(own)


def _unread(composition: Composition, read: set[Key]) -> Iterator[Problem]:
    declared = {key for layer in composition.layers if layer.declares for key in layer.lines}
    components = set(_components(composition.raw))
    reported: set[Key] = set()
    for leaf, _ in settings(composition.raw):
        known = [
            depth for depth in range(len(leaf) + 1) if leaf[:depth] in declared or leaf[:depth] in read or depth == 0
        ]
        inside_component = any(leaf[:depth] in components for depth in range(len(leaf)))
        if leaf in read or max(known) == len(leaf) or inside_component:
            continue
        key = leaf[: max(known) + 1]
        if key in reported:
            continue
        reported.add(key)
        siblings = [each[-1] for each in declared | read if len(each) == len(key) and each[:-1] == key[:-1]]
        near = nearest(key[-1], siblings)
        near = (end_of(key, composition.raw) if leaf == key else None) or (near and dotted((*key[:-1], near)))
        message = "nothing reads this key: no file below conf/ declares it and nothing interpolates it"
        yield Problem(composition.origin(key), dotted(key), message, near)


def _overridden_in_vain(composition: Composition, read: set[Key]) -> Iterator[Problem]:
    """Overrides of a stored recipe that nothing reads: what was interpolated from there is resolved by now."""
    given = (key for key, origin in composition.origins.items() if origin == COMMAND_LINE)
    for key in given if composition.stored_in is not None else ():
        heard = key in read or key[0] in ("run", "task", "launch")
        if not heard and not children(value_at(composition.raw, key)):
            used = [each for each in read if each[-1] == key[-1] and len(each) > 1]
            where = f", as {', '.join(map(dotted, sorted(used)[:3]))}" if used else ""
            message = f"has no effect on a stored recipe, which has the value where it is used{where}: set it there, or"
            yield Problem(COMMAND_LINE, dotted(key), f"{message} compose the recipe with recipe=NAME")


def _plugins(composition: Composition) -> Iterator[Problem]:
    known = [plugin.name for plugin in composition.catalogue.plugins()]
    names = composition.tree.get("plugins")
    for position, name in enumerate(names if isinstance(names, list) else ()):
        key = ("plugins", str(position))
        if name not in known:
            message = f"no plugin '{name}'; there are: {', '.join(known) or 'none'}"
            yield Problem(composition.origin(key), dotted(key), message, nearest(str(name), known))


def _hiding_plugins(composition: Composition) -> Iterator[Problem]:
    """Plugins whose name hides a module that is not theirs."""
    names = child(composition.raw, "plugins")
    for position, name in enumerate(names if isinstance(names, list) else ()):
        if composition.catalogue.hides(str(name)):
            key = ("plugins", str(position))
            message = f"the plugin bears the name of an installed or standard module, {name}; rename its folder"
            yield Problem(composition.origin(key), dotted(key), message)


def _malformed(composition: Composition) -> Iterator[Problem]:
    """Root nodes of another form than the command reads."""
    for name, value in children(composition.raw):
        expected = dict if name in MAPPINGS else list if name in LISTS else object
        if not isinstance(value, expected):
            form = "a mapping" if expected is dict else "a list"
            yield Problem(composition.origin((name,)), name, f"must be {form}")


def _calls(composition: Composition) -> Iterator[Problem]:
    """Interpolations that call what they may not, and text that would be an interpolation once more."""
    for key, why in refused_calls(composition.raw):
        yield Problem(composition.origin(key), dotted(key), why)
    for key, value in leaves(composition.tree):
        if isinstance(value, str) and "${" in value:
            message = "still holds ${ after it was resolved: a recipe is interpolated once; leave the $ out"
            yield Problem(composition.origin(key), dotted(key), message)


def _component(composition: Composition, key: Key, value: dict[str, Any], plugins: list[str]) -> Iterator[Problem]:
    """Faults of one component: of its target, and of its arguments against the target's signature."""
    target, at = value["_target_"], (*key, "_target_")
    if target == MISSING:
        return
    if not isinstance(target, str):
        yield Problem(composition.origin(at), dotted(at), "must be the dotted name of a class or function")
        return
    if wrong := refusal(target, plugins):
        package = target.partition(".")[0]
        if any(plugin.name == package for plugin in composition.catalogue.plugins()) and package not in plugins:
            wrong = f"belongs to a plugin that the recipe does not enable; write plugins: [{package}]"
        yield Problem(composition.origin(at), dotted(at), f"{target}: {wrong}")
        return
    try:
        located = locate(target)
    except NoSuchTarget as error:
        near = nearest(error.name, error.candidates)
        yield Problem(composition.origin(at), dotted(at), f"no such target: {error}", near and f"{error.prefix}{near}")
        return
    except SyntaxError as error:
        yield Problem(composition.origin(at), dotted(at), f"{target} cannot be read: {error}")
        return
    is_class = isinstance(located.node, ast.ClassDef) if located.node is not None else None
    declared = declares_component(located)
    if wrong := refusal_of_definition(located.module, located.qualname, is_class, declared, plugins):
        yield Problem(composition.origin(at), dotted(at), f"{target}: {wrong}")
        return
    yield from argument_faults(composition, key, value, located)


def _repetitions(composition: Composition) -> Iterator[Problem]:
    """Lines of the recipe that repeat what earlier files set."""
    before: dict[Key, Any] = {}
    for layer in composition.layers:
        own = layer.config_path == f"recipe/{composition.recipe}"
        for key, value in settings(layer.values):
            if own and key and key in before and before[key] == value and type(before[key]) is type(value):
                message = "repeats the base; leave it out"
                yield Problem(layer.origin(key), dotted(key), message, warning=True)
            before[key] = value
        if own:
            return
