"""Recipes: overrides, conversions, mistakes by name, paths, YAML there and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from multimodal_gpt.errors import UserError
from multimodal_gpt.recipe import load
from multimodal_gpt.recipe.estimate import survey
from multimodal_gpt.recipe.listing import to_yaml
from multimodal_gpt.recipe.load import apply_override, arrangements, load_recipe, modalities, save_recipe
from multimodal_gpt.recipe.schema import Recipe
from multimodal_gpt.stream.arrangement import Arrangement, default_arrangements
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.vocabulary import Vocabulary

LETTERS = (Path(__file__).parent / "toys" / "letters.py").read_text("utf-8")
RECIPE = """\
# Words over letters.
run: runs/letters
tokenizers:
  words: {plugin: ./letters.py, letters: abc}
  more: {plugin: ./letters.py}
data: {folders: [tunes]}
train: {steps: 10, learning_rate: 3e-4}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, its plugin and its data; the working directory is another one."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    (home / "tunes").mkdir(parents=True)
    elsewhere.mkdir()
    (home / "letters.py").write_text(LETTERS, "utf-8")
    (home / "my.yaml").write_text(RECIPE, "utf-8")
    monkeypatch.chdir(elsewhere)
    return home


def mistake(folder: Path, *overrides: str, text: str | None = None) -> str:
    """The text of the UserError that a recipe gives."""
    if text is not None:
        (folder / "my.yaml").write_text(text, "utf-8")
    with pytest.raises(UserError) as caught:
        load_recipe(folder / "my.yaml", overrides)
    return str(caught.value)


def packaged(name: str, run: Path) -> Recipe:
    """A recipe of the package; what begins from a trained run begins from that of the demo, in `run`."""
    load.save_recipe(load_recipe("demo"), run / "recipe.yaml")
    begins = "init_from:" in load.find(name).read_text("utf-8")
    return load_recipe(name, [f"init_from={run}"] if begins else [])


# What is loaded


@pytest.mark.parametrize("name", load.names())
def test_every_recipe_of_the_package_loads_and_says_what_it_is(name: str, tmp_path: Path) -> None:
    recipe = packaged(name, tmp_path)
    assert len(load.title(load.find(name))) > 20
    assert len(recipe.arrangements) >= 1
    assert [m.name for m in modalities(recipe)] == list(recipe.tokenizers)


def test_a_number_written_as_yaml_text_becomes_a_number(folder: Path) -> None:
    assert load_recipe(folder / "my.yaml").train.learning_rate == pytest.approx(3e-4)


def test_paths_come_from_the_recipes_folder_where_they_exist_there(folder: Path) -> None:
    recipe = load_recipe(folder / "my.yaml")
    assert recipe.data.folders == [str(folder / "tunes")]
    assert recipe.tokenizers["words"].plugin == str(folder / "letters.py")


def test_paths_in_overrides_come_from_the_working_directory(folder: Path) -> None:
    Path("tunes").mkdir()
    recipe = load_recipe(folder / "my.yaml", ["data.folders=[tunes, other]"])
    assert recipe.data.folders == [str(Path.cwd() / "tunes"), str(Path.cwd() / "other")]


def test_a_run_folder_is_a_recipe(folder: Path) -> None:
    recipe = load_recipe(folder / "my.yaml")
    save_recipe(recipe, folder / "recipe.yaml")
    assert load_recipe(folder) == recipe


def test_modalities_keep_their_order_and_options(folder: Path) -> None:
    plugin = str(folder / "letters.py")
    expected = [Modality("words", plugin, {"letters": "abc"}), Modality("more", plugin, {})]
    assert modalities(load_recipe(folder / "my.yaml")) == expected


def test_arrangements_default_to_what_suits_the_modalities(folder: Path) -> None:
    recipe = load_recipe(folder / "my.yaml")
    vocabulary = Vocabulary(modalities(recipe))
    assert arrangements(recipe, vocabulary) == default_arrangements(vocabulary)


def test_arrangements_are_parsed(folder: Path) -> None:
    recipe = load_recipe(folder / "my.yaml", ["arrangements.0.order=[words+more]", "arrangements.0.hole=0.5"])
    assert arrangements(recipe, Vocabulary(modalities(recipe))) == [
        Arrangement((("words", "more"),), hole=0.5)
    ]


def test_empty_sections_and_modalities_mean_defaults(folder: Path) -> None:
    text = "tokenizers: {bare: {plugin: ./letters.py}}\ntrain:\nmodel:\n"
    (folder / "my.yaml").write_text(text, "utf-8")
    assert load_recipe(folder / "my.yaml").train.steps == 1000


def test_a_recipe_extends_another(folder: Path) -> None:
    text = "extends: my.yaml\ntokenizers: {words: {letters: xy}}\ntrain: {steps: 20}\n"
    (folder / "longer.yaml").write_text(text, "utf-8")
    base, recipe = load_recipe(folder / "my.yaml"), load_recipe(folder / "longer.yaml")
    assert recipe.train == base.train.model_copy(update={"steps": 20})
    assert recipe.tokenizers["words"].model_extra == {"letters": "xy"}
    assert recipe.data == base.data


def test_only_one_level_is_extended(folder: Path) -> None:
    (folder / "middle.yaml").write_text("extends: my.yaml\n", "utf-8")
    message = mistake(folder, text="extends: middle.yaml\n")
    assert message == "my.yaml: extends: 'middle.yaml' extends another recipe itself (one level only)"


# Overrides


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a=1", {"a": 1}),
        ("a.b.c=x", {"a": {"b": {"c": "x"}}}),
        ("a=[x, y]", {"a": ["x", "y"]}),
        ("a=b=c", {"a": "b=c"}),
        ("a=", {"a": None}),
        ("a.0.b=[text]", {"a": [{"b": ["text"]}]}),
        ("s.1=9", {"s": [5, 9]}),
        ("s.0=9", {"s": [9]}),
    ],
)
def test_overrides(override: str, expected: dict[str, object]) -> None:
    raw: dict[str, object] = {"s": [5]}
    apply_override(raw, override)
    assert raw == {"s": [5]} | expected


@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=4),
    st.integers() | st.booleans() | st.text("xyz", min_size=1),
)
def test_an_override_sets_exactly_the_place_it_names(keys: list[str], value: object) -> None:
    raw: dict[str, object] = {}
    apply_override(raw, f"{'.'.join(keys)}={json.dumps(value)}")
    node: object = raw
    for key in keys:
        assert isinstance(node, dict)
        assert list(node) == [key]
        node = node[key]
    assert node == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "'train.steps' is not an override (write section.key=value: train.steps=500)"),
        ("=3", "'=3' is not an override (write section.key=value: train.steps=500)"),
        ("data.folders.5=x", "data.folders.5: '5' is not an index into a list of 1 (count from 0)"),
        ("train.steps.x=1", "train.steps: has nothing below it (it is 10)"),
        (
            "data.folders=[a",
            "override data.folders: line 1: is not YAML: expected ',' or ']', but got '<stream end>'",
        ),
    ],
)
def test_impossible_overrides(folder: Path, override: str, message: str) -> None:
    assert mistake(folder, override) == f"my.yaml: {message}"


# Mistakes


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stps=5", "train: unknown key 'stps' (did you mean 'steps'?)"),
        ("steps=5", "unknown key 'steps' (did you mean 'train.steps'?)"),
        (
            "arrangements=[{order: [words], wait: 1}]",
            "arrangements.0: unknown key 'wait' (did you mean 'weight'?)",
        ),
        (
            "train.samples.0.too=[words]",
            "train.samples.0: 'to' is missing; train.samples.0: unknown key 'too' (did you mean 'to'?)",
        ),
        ("model.depth=deep", "model.depth: 'deep' is not a whole number"),
        ("model.depth=2.5", "model.depth: 2.5 is not a whole number"),
        ("model.depth=true", "model.depth: True is not a number"),
        ("model.depth=0", "model.depth: 0 must be at least 1"),
        ("train.clip=0", "train.clip: 0 must be above 0"),
        ("train.clip=.inf", "train.clip: inf is not a finite number"),
        ("train.warmup=2", "train.warmup: 2 must be at most 1"),
        ("train.precision=fp8", "train.precision: 'fp8' is none of 'auto', '32' or 'bf16'"),
        ("train.tensorboard=perhaps", "train.tensorboard: 'perhaps' is not true or false"),
        ("data.folders=tunes", "data.folders: 'tunes' is not a list (write [tunes])"),
        ("run=3", 'run: 3 is not text (write "3" in quotes)'),
        ("train=5", "train: 5 is not a mapping"),
        ("model.width=130", "model: width 130 is no multiple of 2 * 4 heads (try width=128)"),
        ("model.kv_heads=3", "model: heads 5 is no multiple of kv_heads 3"),
        ("train.warmup=0.9", "train: warmup 0.9 + decay 0.6 is more than all steps"),
        ("train.betas=[0.9, 1]", "train.betas: [0.9, 1.0] must lie in [0, 1)"),
        (
            "arrangements=[{order: [word]}]",
            "arrangements.0: order: unknown modality 'word' (did you mean 'words'?)",
        ),
        (
            "arrangements=[{order: [words], weight: 0}]",
            "arrangements: every weight is 0 (one must be above 0)",
        ),
        ("data.captions.templates=[a]", "data.captions.into: unknown modality 'text' (known: more, words)"),
        ("train.emphasis={wrds: 2}", "train.emphasis: unknown modality 'wrds' (did you mean 'words'?)"),
        ("train.emphasis={words: 0}", "train.emphasis.words: 0 must be above 0"),
        ("train.samples=[{to: [wrds]}]", "train.samples.0: unknown modality 'wrds' (did you mean 'words'?)"),
        (
            "train.samples=[{to: [more], given: {more: a}}]",
            "train.samples.0: can't generate ['more'] from ['more'] (name at least one, each once)",
        ),
        (
            "tokenizers.seed={plugin: text}",
            "tokenizers.seed: 'seed' is an option of `mmgpt generate` (choose another name)",
        ),
        (
            "tokenizers.a-b={plugin: text}",
            "tokenizers.a-b: 'a-b' is not a name for a modality (use a-z, 0-9 and _)",
        ),
    ],
)
def test_a_mistake_names_its_place_its_value_and_the_way_out(
    folder: Path, override: str, message: str
) -> None:
    count = message.count("; ") + 1
    assert (
        mistake(folder, override) == f"my.yaml: {message}"
        if count == 1
        else f"my.yaml: {count} mistakes: {message}"
    )


def test_an_unknown_plugin_gets_the_nearest(folder: Path) -> None:
    message = mistake(folder, "tokenizers.txt={}")
    expected = (
        "tokenizers.txt: there is no plugin 'txt' (did you mean 'text'?; a file is given as plugin: ./txt.py)"
    )
    assert message == f"my.yaml: {expected}"


def test_all_mistakes_are_reported_at_once(folder: Path) -> None:
    message = mistake(folder, "train.stps=1", "model.depth=x", "nonsense=1")
    assert message.startswith("my.yaml: 3 mistakes: ")
    assert all(part in message for part in ("'stps'", "model.depth: 'x'", "'nonsense'"))
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "my.yaml: holds no recipe (a recipe is a mapping, as in `mmgpt show demo`)"),
        ("run: [", "my.yaml: line 1: is not YAML: expected the node content, but found '<stream end>'"),
        ("run: a\nrun: b\n", "my.yaml: line 2: is not YAML: the key 'run' is given twice"),
        ("on: a\n", "my.yaml: line 1: is not YAML: the key True is not text; put it in quotes"),
        ("run: !!python/object:os.system {}\n", "could not determine a constructor"),
        ("run: a\n", "my.yaml: 'tokenizers' is missing"),
        ("tokenizers: {}\n", "my.yaml: tokenizers: names no modality (known: "),
        ("extends: nonesuch\n", "my.yaml: extends: there is no recipe 'nonesuch'"),
        ("extends: [a]\n", "my.yaml: extends: ['a'] is not the name of a recipe"),
    ],
)
def test_files_that_are_no_recipe(folder: Path, text: str, message: str) -> None:
    assert message in mistake(folder, text=text)


def test_a_recipe_that_is_not_text(folder: Path) -> None:
    (folder / "my.yaml").write_bytes(b"run: \xff\n")
    assert "my.yaml: is not UTF-8: byte 5 is 0xff" in mistake(folder)


def test_an_unknown_recipe_gets_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("dmeo")
    assert (
        str(caught.value) == "there is no recipe 'dmeo' (did you mean 'demo'?; a file is given as ./my.yaml)"
    )


def test_survey_builds_tokenizers_and_finds_every_mistake(folder: Path) -> None:
    facts, problems = survey(load_recipe(folder / "my.yaml"))
    assert not problems
    assert facts is not None
    assert facts.sizes == {"words": 3, "more": 5}
    assert facts.table == 64
    overrides = ["data.folders=[none]", "tokenizers.words.leters=ab", "tokenizers.text={encoding: byte}"]
    facts, problems = survey(load_recipe(folder / "my.yaml", overrides))
    told = "; ".join(map(str, problems))
    assert "tokenizers.words: unknown option 'leters' (did you mean 'letters'?)" in told
    assert "tokenizers.text: unknown encoding 'byte' (did you mean 'bytes'?)" in told
    assert "data.folders: '" in told
    assert facts is None


# There and back


@pytest.mark.parametrize("comments", [False, True])
@pytest.mark.parametrize("name", load.names())
def test_yaml_of_a_recipe_gives_the_recipe_back(name: str, comments: bool, tmp_path: Path) -> None:
    recipe = packaged(name, tmp_path)
    assert Recipe.model_validate(yaml.safe_load(to_yaml(recipe.plain(), comments=comments))) == recipe


@settings(max_examples=40)
@given(st.dictionaries(st.text(max_size=9), st.text(max_size=30), max_size=3), st.text(max_size=30))
def test_any_text_survives_yaml(given_text: dict[str, str], run: str) -> None:
    values = {
        "run": run,
        "tokenizers": {"text": {"pattern": run}},
        "train": {"samples": [{"given": given_text, "to": ["text"]}], "learning_rate": 1e-9},
    }
    recipe = Recipe.model_validate(values)
    assert Recipe.model_validate(yaml.safe_load(to_yaml(recipe.plain(), comments=True))) == recipe


def test_every_option_is_explained() -> None:
    lines = to_yaml(load_recipe("text_only").plain(), comments=True).splitlines()
    assert any(line.startswith("  steps: ") and line.endswith("# optimizer steps") for line in lines)


def test_json_schema_knows_extends_and_refuses_unknown_keys() -> None:
    schema = load.json_schema()
    assert schema["additionalProperties"] is False
    assert {"extends", "run", "tokenizers", "train"} <= set(schema["properties"])
    assert {"required": ["tokenizers"]} in schema["anyOf"]
