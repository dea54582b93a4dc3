"""The rules of the house that a machine can check; see CONTRIBUTING.md."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, PLUGINS = ROOT / "multimodal_gpt", ROOT / "tokenizers"
SOURCES = sorted([*PACKAGE.rglob("*.py"), *PLUGINS.glob("*.py")])

CORE = ("stream", "data", "model", "training", "generation")
MODALITY_WORDS = re.compile(
    r"\b(midi|pitch(es)?|chords?|melod(y|ies)|tiktoken|miditok|mido|symusic)\b|[\"'`<\[]text[\"'`>]",
    re.IGNORECASE,
)
"""As an ordinary word, the text of a file, `text` names no modality; quoted or as a tag it does."""

RANKS = {
    "errors": 0,
    "versions": 0,
    "files": 1,
    "console": 1,
    "provenance": 2,
    "stream": 2,
    "testing": 3,
    "conformance": 3,
    "recipe": 3,
    "data": 4,
    "fetch": 4,
    "model": 5,
    "training": 6,
    "generation": 6,
    "compression": 7,
    "evaluation": 7,
    "looking": 8,
    "asking": 8,
    "inspection": 8,
    "rendering": 8,
    "replaying": 8,
    "exporting": 8,
    "demo": 8,
    "commands": 9,
    "cli": 10,
}
"""A room imports from its own rank and below; training and generation know each other. `rendering` is about
music and `evaluation` measures it; no core room imports them, and they may use what the plugins share."""
HEAVY = ("torch", "lightning", "miditok")


@cache
def source(path: Path) -> str:
    return path.read_text("utf-8")


@cache
def syntax(path: Path) -> ast.Module:
    return ast.parse(source(path))


def imports(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, in functions too, but not for type checkers alone."""
    tree = syntax(path)
    skipped = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and ast.unparse(test.test).endswith("TYPE_CHECKING")
        for node in ast.walk(test)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", CORE)
def test_the_core_names_no_modality(room: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted((PACKAGE / room).rglob("*.py"))
        for number, line in enumerate(source(path).splitlines(), 1)
        if MODALITY_WORDS.search(line)
    ]
    assert not found, "\n".join(found)


def finds_nothing(check: Callable[[Path], Iterator[str]], paths: Iterable[Path]) -> None:
    found = [f"{path.relative_to(ROOT)}: {what}" for path in paths for what in check(path)]
    assert not found, "\n".join(found)


def wrong_imports(path: Path) -> Iterator[str]:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room.startswith("__"):
        return
    for name in imports(path):
        other = name.split(".")[1] if name.startswith("multimodal_gpt.") else None
        if other in RANKS and RANKS[other] > RANKS[room]:
            yield f"{room} imports {name}"
        music = room in ("rendering", "evaluation") and name.startswith("multimodal_gpt.tokenizers._")
        if not music and other in ("tokenizers", "recipes"):
            yield f"{room} imports {name} by name"


def test_imports_go_one_way() -> None:
    finds_nothing(wrong_imports, sorted(PACKAGE.rglob("*.py")))


@pytest.mark.parametrize("path", sorted(PLUGINS.glob("*.py")), ids=lambda p: p.name)
def test_plugins_know_neither_torch_nor_each_other(path: Path) -> None:
    for name in imports(path):
        assert name.split(".")[0] not in ("torch", "lightning", "pytorch_lightning")
        if name.startswith("multimodal_gpt."):
            room, _, rest = name.removeprefix("multimodal_gpt.").partition(".")
            assert room in ("errors", "files", "stream", "tokenizers")
            assert room != "tokenizers" or rest.startswith("_"), f"imports the plugin {rest}"


def long_ones(path: Path) -> Iterator[str]:
    if len(source(path).splitlines()) > 400:
        yield "more than 400 lines"
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60:
            yield f"{node.name} is too long"


def test_files_and_functions_are_short() -> None:
    finds_nothing(long_ones, SOURCES)


def left_over(path: Path) -> Iterator[str]:
    yield from re.findall(r"\b(?:TODO|FIXME|XXX|HACK)\b|breakpoint\(|/work/|/tmp/", source(path))


def test_nothing_is_left_over() -> None:
    finds_nothing(left_over, SOURCES)


def test_no_drawers() -> None:
    drawers = {"utils", "util", "helpers", "manager", "base", "misc", "common"}
    assert not [path for path in SOURCES if path.stem.strip("_") in drawers]


TELL = """
import json, sys
from multimodal_gpt.cli import main
before, new = set(), []
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as leaving:
        assert not leaving.code, (arguments, leaving.code)
    loaded = {name.split(".")[0] for name in sys.modules}
    new.append(sorted(loaded - before))
    before = loaded
print()
print(json.dumps(new))
"""


def loaded_by(folder: Path, *lines: list[str]) -> list[set[str]]:
    """Top-level modules that each of some command lines is the first to load, in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-c", TELL, json.dumps(lines)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [set(names) for names in json.loads(done.stdout.splitlines()[-1])]


QUICK = [
    ["--help"],
    ["generate", "--help"],
    ["lens", "--help"],
    ["render", "--help"],
    ["recipes"],
    ["schema"],
    ["fetch"],
]


def test_help_and_recipes_load_nothing_heavy(tmp_path: Path) -> None:
    heavy = {*HEAVY, "music21", "pyarrow", "symusic", "matplotlib"}
    found = zip(QUICK, loaded_by(tmp_path, *QUICK), strict=True)
    assert [(words, names & heavy) for words, names in found if names & heavy] == []


def test_validate_and_prepare_do_not_load_torch(tmp_path: Path) -> None:
    (tmp_path / "tunes").mkdir()
    for number in range(4):
        (tmp_path / "tunes" / f"{number}.txt").write_text(f"a slow waltz number {number}\n", "utf-8")
    recipe = ["text_only", "data.folders=[tunes]", "data.workers=1"]
    validated, prepared = loaded_by(tmp_path, ["validate", *recipe], ["prepare", *recipe])
    assert not validated & set(HEAVY)
    assert not (validated | prepared) & {"torch", "lightning"}
    assert (tmp_path / "runs" / "text_only" / "shards" / "manifest.json").is_file()


def test_validating_all_modalities_does_not_load_torch(tmp_path: Path) -> None:
    (tmp_path / "tunes").mkdir()
    (loaded,) = loaded_by(tmp_path, ["validate", "own_folder", "data.folders=[tunes]"])
    assert not loaded & {"torch", "lightning"}


EXAMPLES = [path for path in SOURCES if ">>>" in source(path)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: str(p.relative_to(ROOT)))
def test_examples_in_docstrings_are_true(path: Path) -> None:
    below = path.relative_to(PACKAGE if PACKAGE in path.parents else ROOT).with_suffix("")
    module = importlib.import_module(".".join(("multimodal_gpt", *below.parts)))
    failed, tried = doctest.testmod(module)
    assert tried > 0
    assert failed == 0
