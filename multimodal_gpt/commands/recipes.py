"""Verbs on recipes: list, show, copy, check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from multimodal_gpt import console
from multimodal_gpt.commands import files
from multimodal_gpt.commands.options import Force, Json, Overrides, RecipeName, print_json
from multimodal_gpt.errors import UserError


def recipes(as_json: Json = False) -> None:
    """List the recipes that come with the package.

    Example: mmgpt recipes
    """
    from multimodal_gpt.recipe import load

    rows = [(name, load.title(path)) for name, path in load.names().items()]
    if as_json:
        print_json([{"name": name, "title": title} for name, title in rows])
    else:
        console.table("", ["recipe", "what it is"], rows)


def show(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|FILE", help="a recipe, or a generated file")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Print a recipe, every option explained; or how a generated file was made.

    Example: mmgpt show demo train.steps=200
    Example: mmgpt show out/0001.mid
    """
    from multimodal_gpt.recipe.listing import to_yaml
    from multimodal_gpt.recipe.load import load_recipe, names

    if files.is_piece(recipe, list(names())):
        files.show_piece(Path(recipe), overrides or (), as_json)
        return
    resolved = load_recipe(recipe, overrides or ()).plain()
    if as_json:
        print_json(resolved)
    else:
        console.say(to_yaml(resolved, comments=True).rstrip("\n"))


def copy(
    recipe: RecipeName,
    path: Annotated[Path | None, typer.Argument(metavar="[PATH]", help="./RECIPE.yaml if absent")] = None,
    force: Force = False,
) -> None:
    """Copy a recipe to a file of your own, comments and all.

    Example: mmgpt copy own_folder my.yaml
    """
    from multimodal_gpt.files import read_text, write_text
    from multimodal_gpt.recipe.load import find

    source = find(recipe)
    target = path or Path(source.name)
    target = target / source.name if target.is_dir() else target
    if target.exists() and not force:
        raise UserError("the file exists already", target, "name another path, or add --force")
    console.say(str(write_text(target, read_text(source))))


def validate(recipe: RecipeName, overrides: Overrides = None, as_json: Json = False) -> None:
    """Check a recipe and its folders, and say how large the run is.

    Example: mmgpt validate ./my.yaml data.folders=[my_midi]
    """
    from multimodal_gpt.recipe.estimate import survey
    from multimodal_gpt.recipe.load import load_recipe

    checked = load_recipe(recipe, overrides or ())
    facts, problems = survey(checked)
    problems += _corpus_problems(checked)
    if problems or facts is None:
        raise UserError("; ".join(map(str, problems)), recipe)
    if as_json:
        print_json({"recipe": checked.plain(), "estimate": vars(facts)})
    else:
        console.table(f"{recipe} is valid", ["what", "how much"], facts.rows())


def _corpus_problems(recipe: Any) -> list[UserError]:
    from multimodal_gpt.data.sources import find_sources
    from multimodal_gpt.recipe.load import modalities

    problems = []
    for name in recipe.data.corpora:
        alone = recipe.data.model_copy(update={"folders": [], "validation_folders": [], "corpora": [name]})
        try:
            find_sources(alone, modalities(recipe))
        except UserError as error:
            problems.append(error)
    return problems


def schema() -> None:
    """Print the JSON schema of recipes, for editors that know YAML.

    Example: mmgpt schema > recipe.schema.json
    """
    from multimodal_gpt.recipe.load import json_schema

    print_json(json_schema())
