"""What can be wrong with a recipe: each mistake one UserError with its place, bad value and way out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from multimodal_gpt.errors import UserError, nearest
from multimodal_gpt.recipe.schema import Recipe, SamplePrompt
from multimodal_gpt.stream import plugins
from multimodal_gpt.stream.arrangement import parse_order

Place = tuple[str | int, ...]

WANTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
TAKEN = (
    *("to", "n", "number", "seed", "out", "temperature", "top_k", "top_p", "min_p", "max_tokens"),
    *("plugin", "device", "force", "json", "help", "run", "progress"),
)
"""Names that can't be given to a modality, because `--NAME` means something else."""
BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}


def schema_problems(error: ValidationError, model: type[BaseModel] = Recipe) -> list[UserError]:
    """What pydantic found in a file that describes a `model`, in the words of the file's author."""
    details = (d for d in error.errors() if d["type"] != "default_factory_not_called")  # another's mistake
    return [_schema_problem(detail, model) for detail in details]


def _schema_problem(detail: Mapping[str, Any], model: type[BaseModel]) -> UserError:
    place: Place = detail["loc"]
    kind, value, where = detail["type"], detail["input"], dotted(place)
    if kind == "extra_forbidden":
        return UserError(f"unknown key '{place[-1]}'", dotted(place[:-1]), _nearest_key(place, model))
    if kind == "missing":
        return UserError(f"'{place[-1]}' is missing", dotted(place[:-1]))
    if kind in WANTED:
        return UserError(f"{value!r} is not {WANTED[kind]}", where, _hint(kind, value))
    if kind in BOUNDS:
        words, key = BOUNDS[kind]
        return UserError(f"{value!r} must be {words} {detail['ctx'][key]:g}", where)
    if kind == "literal_error":
        return UserError(f"{value!r} is none of {detail['ctx']['expected']}", where)
    return UserError(f"{value!r}: {detail['msg']}", where)


def _hint(kind: str, value: Any) -> str:
    if WANTED[kind] == "a list" and isinstance(value, str):
        return f"write [{value}]"
    return f'write "{value}" in quotes' if kind == "string_type" and isinstance(value, int | float) else ""


def dotted(place: Sequence[str | int]) -> str:
    """A place in a recipe as overrides write it: `train.samples.0.to`."""
    return ".".join(str(p) for p in place)


def _nearest_key(place: Place, top: type[BaseModel]) -> str:
    wrong = str(place[-1])
    model = _model_at(place[:-1], top)
    here = set(model.model_fields) if model is not None else set()
    elsewhere = [path for path in _all_keys(top) if path.rpartition(".")[2] == wrong]
    if elsewhere and nearest(wrong, here).startswith("known"):
        return "did you mean " + " or ".join(repr(path) for path in elsewhere[:2]) + "?"
    return nearest(wrong, here)


def _model_at(place: Place, top: type[BaseModel]) -> type[BaseModel] | None:
    model: type[BaseModel] | None = top
    for key in place:
        if isinstance(key, str) and model is not None and key in model.model_fields:
            model = _section_of(model.model_fields[key].annotation)
    return model


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_of(part))), None)


def _all_keys(model: type[BaseModel], above: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield above + name
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from _all_keys(section, f"{above}{name}.")


def silent_conversions(given: Any, made: Any, place: Place = ()) -> list[UserError]:
    """Values that pydantic accepts but nobody means: true as a number, a number without end."""
    if isinstance(given, dict) and isinstance(made, dict):
        pairs: Any = ((key, value, made.get(key)) for key, value in given.items())
    elif isinstance(given, list) and isinstance(made, list):
        pairs = zip(range(len(given)), given, made, strict=True)
    else:
        return _silent_conversion(given, made, dotted(place))
    return [p for key, a, b in pairs for p in silent_conversions(a, b, (*place, key))]


def _silent_conversion(given: Any, made: Any, where: str) -> list[UserError]:
    if isinstance(given, bool) and not isinstance(made, bool):
        return [UserError(f"{given!r} is not a number", where)]
    if isinstance(made, float) and not math.isfinite(made):
        return [UserError(f"{given!r} is not a finite number", where)]
    return []


def cross_check(recipe: Recipe) -> list[UserError]:
    """Mistakes between values that are each valid by themselves."""
    checks = (_tokenizers, _arrangements, _model, _captions, _train)
    return [problem for check in checks for problem in check(recipe)]


def _tokenizers(recipe: Recipe) -> Iterator[UserError]:
    if not recipe.tokenizers:
        yield UserError("names no modality", "tokenizers", "known: " + ", ".join(plugins.available()))
    for name, options in recipe.tokenizers.items():
        where = f"tokenizers.{name}"
        if not (name.isidentifier() and name.isascii() and name == name.lower()):
            yield UserError(f"'{name}' is not a name for a modality", where, "use a-z, 0-9 and _")
        if name in TAKEN:
            yield UserError(f"'{name}' is an option of `mmgpt generate`", where, "choose another name")
        plugin = options.plugin or name
        if plugin.endswith(".py"):
            if not Path(plugin).is_file():
                yield UserError(f"there is no plugin file '{plugin}'", where)
        elif plugin not in plugins.available():
            hint = f"{nearest(plugin, plugins.available())}; a file is given as plugin: ./{plugin}.py"
            yield UserError(f"there is no plugin '{plugin}'", where, hint)


def _arrangements(recipe: Recipe) -> Iterator[UserError]:
    for index, arrangement in enumerate(recipe.arrangements):
        try:
            parse_order(arrangement.order, list(recipe.tokenizers))
        except UserError as error:
            yield error.within(f"arrangements.{index}")
    if recipe.arrangements and not any(a.weight for a in recipe.arrangements):
        yield UserError("every weight is 0", "arrangements", "one must be above 0")


def _model(recipe: Recipe) -> Iterator[UserError]:
    width, heads = recipe.model.width, recipe.model.heads
    kv_heads = recipe.model.key_value_heads
    if width % (2 * heads):  # rotary positions turn pairs of numbers within a head
        near = 2 * heads * max(1, round(width / (2 * heads)))
        yield UserError(f"width {width} is no multiple of 2 * {heads} heads", "model", f"try width={near}")
    if heads % kv_heads:
        yield UserError(f"heads {heads} is no multiple of kv_heads {kv_heads}", "model")


def _captions(recipe: Recipe) -> Iterator[UserError]:
    captions = recipe.data.captions
    if captions.templates and captions.into not in recipe.tokenizers:
        hint = nearest(captions.into, recipe.tokenizers)
        yield UserError(f"unknown modality '{captions.into}'", "data.captions.into", hint)


def _train(recipe: Recipe) -> Iterator[UserError]:
    train = recipe.train
    if not all(0 <= beta < 1 for beta in train.betas):
        yield UserError(f"{list(train.betas)} must lie in [0, 1)", "train.betas")
    if train.warmup + train.decay > 1:
        yield UserError(f"warmup {train.warmup:g} + decay {train.decay:g} is more than all steps", "train")
    if train.lora.rank and recipe.init_from is None:
        yield UserError("there is no trained run to adapt", "train.lora.rank", "name one: init_from=RUN")
    if train.strategy == "fsdp" and (train.lora.rank or train.freeze):
        what = "fsdp spreads weights that all learn, here some are frozen"
        yield UserError(what, "train.strategy", "take ddp: what does not learn costs it little")
    if recipe.init_from is not None and Path(recipe.init_from) == Path(recipe.run).resolve():
        yield UserError("is the folder of this run itself", "init_from", "give the new one its own: run=...")
    for name in train.emphasis:
        if name not in recipe.tokenizers:
            yield UserError(f"unknown modality '{name}'", "train.emphasis", nearest(name, recipe.tokenizers))
    for index, sample in enumerate(train.samples):
        yield from _sample(f"train.samples.{index}", sample, list(recipe.tokenizers))


def _sample(where: str, sample: SamplePrompt, known: Sequence[str]) -> Iterator[UserError]:
    given, to = list(sample.given), sample.to
    for name in (*given, *to):
        if name not in known:
            yield UserError(f"unknown modality '{name}'", where, nearest(name, known))
    if not to or len(set(to)) != len(to) or set(given) & set(to):
        yield UserError(f"can't generate {to} from {given}", where, "name at least one, each once")
