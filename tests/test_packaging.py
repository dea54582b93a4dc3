"""The package works in a checkout, editable and as a wheel, beside the library whose name we share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Stdout of a command that must succeed."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=cwd, env={**clean, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# The folder `tokenizers/` must not get in the way of the package `tokenizers`


def test_the_tokenizers_folder_is_no_package() -> None:
    assert not (ROOT / "tokenizers" / "__init__.py").exists()
    assert not (ROOT / "conftest.py").exists()
    assert not (ROOT / "tests" / "tokenizers").exists()
    assert not list((ROOT / "tokenizers").rglob("test_*.py"))


def test_the_library_wins_from_the_repository_root() -> None:
    whole = "import miditok, tokenizers; "  # MidiTok imports it, and torch
    for search, first in (({"PYTHONPATH": str(ROOT)}, whole), ({}, "import tokenizers; ")):
        code = f"{first}tokenizers.AddedToken; "
        code += "import multimodal_gpt.tokenizers.text as text; print(text.__file__)"
        assert run(sys.executable, "-c", code, cwd=ROOT, **search).strip() == str(
            ROOT / "tokenizers" / "text.py"
        )


def test_every_room_is_listed_in_pyproject() -> None:
    folders = (path.parent.relative_to(ROOT) for path in (ROOT / "multimodal_gpt").rglob("*/__init__.py"))
    rooms = {".".join(folder.parts) for folder in folders}
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert set(listed) == {"multimodal_gpt", "multimodal_gpt.tokenizers", "multimodal_gpt.recipes"} | rooms


def test_every_import_is_a_dependency() -> None:
    declared = {line.split(">")[0].split("=")[0].lower() for line in PROJECT["project"]["dependencies"]}
    assert {
        "torch",
        "lightning",
        "miditok",
        "mido",
        "symusic",
        "tiktoken",
        "tokenizers",
        "pyyaml",
    } <= declared


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network from a copy of what a fresh clone holds."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("multimodal_gpt", "tokenizers", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source, cwd=out)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_beside_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"multimodal_gpt"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    for name in (
        "py.typed",
        "recipes/demo.yaml",
        "recipes/datasets/pop909.yaml",
        "tokenizers/_music.py",
        "stream/grammar.py",
    ):
        assert f"multimodal_gpt/{name}" in names
    assert "multimodal_gpt/tokenizers/__init__.py" not in names


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clean environment: the wheel, and behind it the libraries of the running environment."""
    home = tmp_path_factory.mktemp("clean")
    venv.create(home / "venv", with_pip=False)
    python = home / "venv" / "bin" / "python"
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=home
    )
    (packages,) = (home / "venv" / "lib").glob("python*/site-packages")
    spec = find_spec("numpy")
    assert spec is not None
    assert spec.origin is not None
    # A path line alone: the .pth files of that folder, the editable install among them, are not read.
    (packages / "libraries.pth").write_text(f"{Path(spec.origin).parent.parent}\n", "utf-8")
    yield home
    shutil.rmtree(home)


def test_the_wheel_runs_away_from_the_checkout(elsewhere: Path) -> None:
    python, mmgpt = elsewhere / "venv" / "bin" / "python", elsewhere / "venv" / "bin" / "mmgpt"
    code = "import multimodal_gpt, tokenizers, multimodal_gpt.tokenizers.text; print(multimodal_gpt.__file__)"
    assert run(python, "-I", "-c", code, cwd=elsewhere).startswith(str(elsewhere))
    assert "own_folder" in run(mmgpt, "recipes", cwd=elsewhere)
    assert "nottingham" in run(mmgpt, "fetch", cwd=elsewhere)
    assert "tokens_per_step" in run(mmgpt, "show", "demo", cwd=elsewhere)
    assert "own_folder" in run(python, "-m", "multimodal_gpt", "recipes", cwd=elsewhere)


def test_the_wheel_runs_inside_the_checkout(elsewhere: Path) -> None:
    code = "import tokenizers; tokenizers.AddedToken; from multimodal_gpt.tokenizers import text"
    run(elsewhere / "venv" / "bin" / "python", "-c", code, cwd=ROOT)


# Command line and CI


def test_ci_runs_what_the_readme_says() -> None:
    ci = (ROOT / ".ci" / "run").read_text("utf-8")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    for command in (
        'pip install --quiet -e ".[dev]" && pytest -q -n auto',
        "ruff check .",
        "ruff format --check .",
        "mypy",
    ):
        assert command in ci


def test_the_version_is_the_same_everywhere() -> None:
    import multimodal_gpt

    assert multimodal_gpt.__version__ == PROJECT["project"]["version"]
    assert f"## {multimodal_gpt.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
