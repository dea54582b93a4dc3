"""The command line: every verb on a toy run, what it prints, every mistake on one line with code 2."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import chdir, redirect_stdout
from pathlib import Path

import pytest
from command_line import mmgpt

from multimodal_gpt.asking import parse_bars, parse_temperature, split_given, split_wishes
from multimodal_gpt.cli import main
from multimodal_gpt.errors import UserError

TOYS = Path(__file__).resolve().parent / "toys"
RECIPE = f"""\
# Toy words and beats.
run: run
tokenizers:
  letters: {{plugin: {TOYS}/letters.py}}
  beats: {{plugin: {TOYS}/beats.py}}
data: {{folders: [toys], validation: 0.2, workers: 1}}
arrangements: [{{order: [letters, beats]}}, {{order: [beats, letters]}}]
model: {{depth: 1, width: 16, heads: 2, context: 64}}
train: {{steps: 3, tokens_per_step: 128, evaluate_rows: 2, log_every: 1, threads: 1, device: cpu}}
"""

Result = tuple[int, str, str]
Command = Callable[..., Result]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: Path) -> Command:
    """Runs `mmgpt` in the folder of the toy run: (exit code, stdout, stderr)."""
    monkeypatch.chdir(home)

    def run(*words: object) -> Result:
        return mmgpt(capsys, *words)

    return run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, its data, and the run that was trained on them by `mmgpt train`."""
    home = tmp_path_factory.mktemp("home")
    (home / "toys").mkdir()
    for i in range(20):
        (home / "toys" / f"{i:02d}.letters").write_text("abcde"[i % 5] * (1 + i % 4) + "ab", "utf-8")
        (home / "toys" / f"{i:02d}.beats").write_text(f"x..{'x.'[i % 2]}\n.x..\n" * (1 + i % 3), "utf-8")
    (home / "toys.yaml").write_text(RECIPE, "utf-8")
    told = io.StringIO()
    with chdir(home), redirect_stdout(told), pytest.raises(SystemExit) as leaving:
        main(["train", "./toys.yaml", "--json"])  # plugins that run in this process are trusted
    assert not leaving.value.code
    (home / "trained.json").write_text(told.getvalue(), "utf-8")
    return home


# Recipes


def test_recipes_are_listed(command: Command) -> None:
    code, out, _ = command("recipes")
    assert code == 0
    assert "own_folder" in out
    code, out, _ = command("recipes", "--json")
    assert {"demo", "own_folder", "text_only"} <= {entry["name"] for entry in json.loads(out)}


def test_show_resolves_and_explains(command: Command) -> None:
    _, out, _ = command("show", "text_only", "train.steps=7")
    assert any(line.split("#")[0].strip() == "steps: 7" for line in out.splitlines())
    assert "# optimizer steps" in out
    _, out, _ = command("show", "text_only", "train.steps=7", "--json")
    assert json.loads(out)["train"]["steps"] == 7


def test_copy_never_overwrites(command: Command, home: Path) -> None:
    target = home / "copied.yaml"
    target.unlink(missing_ok=True)
    assert command("copy", "text_only", "copied.yaml") == (0, "copied.yaml\n", "")
    assert target.read_text("utf-8").startswith("# Plain text")
    target.write_text("mine", "utf-8")
    message = "mmgpt: copied.yaml: the file exists already (name another path, or add --force)\n"
    assert command("copy", "text_only", "copied.yaml") == (2, "", message)
    assert target.read_text("utf-8") == "mine"
    assert command("copy", "text_only", "copied.yaml", "--force")[0] == 0


def test_validate_says_how_large(command: Command) -> None:
    code, out, _ = command("validate", "./toys.yaml", "--json")
    assert code == 0
    facts = json.loads(out)["estimate"]
    assert facts["sizes"] == {"letters": 5, "beats": 5}
    assert facts["tokens_per_step"] == 128


def test_validate_reports_all_mistakes_at_once(command: Command) -> None:
    overrides = ["data.folders=[nowhere]", "data.corpora=[nonesuch]", "tokenizers.letters.leters=a"]
    code, out, err = command("validate", "./toys.yaml", *overrides)
    assert (code, out) == (2, "")
    assert "tokenizers.letters: unknown option 'leters' (did you mean 'letters'?)" in err
    assert "data.folders: '" in err
    assert "nonesuch" in err
    assert err.count("\n") == 1


def test_schema_is_json(command: Command) -> None:
    _, out, _ = command("schema")
    assert json.loads(out)["title"] == "Recipe"


# Preparing and training


def test_prepare_reports_what_it_found(command: Command) -> None:
    code, out, _ = command("prepare", "./toys.yaml", "--json")
    assert code == 0
    report = json.loads(out)
    assert (report["found"], report["kept"]) == (20, 20)
    assert "20 found, 20 kept, 0 skipped" in command("prepare", "./toys.yaml")[1]


def test_train_gives_its_result_as_json(home: Path) -> None:
    result = json.loads((home / "trained.json").read_text("utf-8"))
    assert (result["folder"], result["step"], result["ended"]) == ("run", 3, "steps")
    assert set(result["valid"]) == {"loss", "letters", "beats"}


def test_a_finished_run_is_left_alone(command: Command) -> None:
    code, out, _ = command("train", "./toys.yaml")
    assert code == 0
    assert "run has all its 3 steps" in out


# Asking


def test_generate_writes_the_files_it_names(command: Command, home: Path) -> None:
    ask = [
        "generate",
        "run",
        "--letters",
        "abba",
        "--to",
        "beats",
        "-n",
        2,
        "--seed",
        1,
        "--temperature",
        "beats=0.8",
    ]
    code, out, err = command(*ask, "--out", "one", "--json")
    assert code == 0, err
    pieces = json.loads(out)
    assert [Path(p["files"][0]).name for p in pieces] == ["0001.beats", "0002.beats"]
    assert pieces[0]["given"] == {"letters": "abba"}
    for piece in pieces:
        assert all((home / path).is_file() for path in piece["files"])
    command(*ask, "--out", "two")
    assert (home / "one" / "0002.beats").read_bytes() == (home / "two" / "0002.beats").read_bytes()


def test_pieces_are_continued_and_filled(command: Command) -> None:
    code, out, err = command(
        "continue", "run", "--beats", "x..x ..x.", "--bars", "2", "--out", "on", "--json"
    )
    assert code == 0, err
    (piece,) = json.loads(out)
    assert piece["request"]["begun"] and piece["request"]["bars"] == 2 and piece["to"] == ["beats"]
    words = ["--beats", "x..x ..x. xxxx x...", "--bars", "2-3", "--out", "gap", "--json"]
    code, out, err = command("fill", "run", *words)
    assert code == 0, err
    assert json.loads(out)[0]["request"]["gap"] == [1, 3]
    for verb, words, message in (
        ("fill", ["--beats", "x...", "--bars", "x"], "--bars: 'x' names no bars (write first-last: 5-8)"),
        ("fill", ["--bars", "2-3"], "nothing is given to fill (for example --melody tune.mid)"),
        ("vary", ["--letters", "ab", "--to", "letters"], "letters: nothing can be wished of 'letters'"),
        ("continue", ["--beets", "x..."], "--beets: the run has no modality 'beets' (did you mean 'beats'"),
    ):
        code, out, err = command(verb, "run", *words, "--out", "never")
        assert (code, out) == (2, "") and err.startswith(f"mmgpt: {message}")


def test_generate_refuses_to_overwrite_before_it_starts(command: Command, home: Path) -> None:
    (home / "busy").mkdir()
    (home / "busy" / "0001.beats").write_text("mine", "utf-8")
    ask = ["generate", "run", "--to=beats", "--letters=ab", "--out", "busy"]
    message = "mmgpt: busy: 0001.beats would be overwritten (name another --out, or add --force)\n"
    assert command(*ask) == (2, "", message)
    assert command(*ask, "--force")[0] == 0
    assert (home / "busy" / "0001.beats").read_text("utf-8") != "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--to", "beats", "--leters", "a"],
            "--leters: the run has no modality 'leters' (did you mean 'letters'?)",
        ),
        (["--to", "beats", "--sed", "1"], "--sed: the run has no modality 'sed' (did you mean 'seed'?)"),
        (["--to", "beets"], "--to: the run has no modality 'beets' (did you mean 'beats'?)"),
        (["--to", "beats", "--letters"], '--letters wants a value (write --letters "...")'),
        (["--to", "beats", "--letters", "a", "--letters", "b"], "--letters is given twice"),
        (
            ["--to", "beats", "--temperature", "hot"],
            "--temperature: 'hot' is no temperature (write 0.9 or text=0.7,melody=1)",
        ),
        (["--to", "beats", "--plugin", "x"], "--plugin: 'x' names no file (write NAME=FILE.py)"),
        (
            ["--to", "letters,beats", "--letters", "a"],
            "'letters' is both given and asked for (leave it out of one of them)",
        ),
        (["--to", "beats", "--letters", "xyz"], "letters: 'xyz' is not a word over 'abcde'"),
    ],
)
def test_questions_that_make_no_sense(command: Command, words: list[str], message: str) -> None:
    assert command("generate", "run", *words, "--out", "never") == (2, "", f"mmgpt: {message}\n")
    assert not Path("never").exists()


# Looking


def test_inspect_a_run(command: Command) -> None:
    code, out, _ = command("inspect", "run", "--json")
    assert code == 0
    tables = json.loads(out)["tables"]
    assert [row["modality"] for row in tables["vocabulary"]] == ["letters", "beats"]
    assert tables["run"][0] == {"what": "step", "value": 3}
    assert {row["split"] for row in tables["last losses, nats per token"]} == {"train", "valid"}


def test_inspect_shards(command: Command) -> None:
    code, out, _ = command("inspect", "run/shards")
    assert code == 0
    assert "<letters> " in out
    assert "lengths, tokens per segment" in out


def test_inspect_a_file(command: Command) -> None:
    code, out, _ = command("inspect", "toys/03.letters", "--recipe", "run", "--json")
    assert code == 0
    (row,) = json.loads(out)["tables"]["read"]
    assert row == {"modality": "letters", "pieces": 1, "tokens": 6, "units": 6, "unit": "letter"}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "nowhere: does not exist"),
        (
            "toys",
            "toys: is neither a trained run nor a folder of shards (give one of its files; or prepare it: ",
        ),
        ("toys.yaml", "toys.yaml: no tokenizer of 'run' reads '.yaml' (known: .beats .letters)"),
    ],
)
def test_inspect_refuses(command: Command, path: str, message: str) -> None:
    code, out, err = command("inspect", path, "--recipe", "run")
    assert (code, out) == (2, "")
    assert err.startswith(f"mmgpt: {message}")
    assert err.count("\n") == 1


# Mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "No such command 'trian'"),
        (["generate", "run", "--to", "beats", "-n", "0"], "Invalid value for '-n' / '--number': "),
        (["train"], "Missing argument 'RECIPE'"),
        (["copy", "demo", "--frce"], "No such option: --frce"),
        (["train", "dmeo"], "there is no recipe 'dmeo' (did you mean 'demo'?; a file is given as ./my.yaml)"),
        (["prepare", "text_only"], "data: names no data to train on (data.folders=[my_folder])"),
        (["prepare", "text_only", "data.folders=[nowhere]"], "data.folders: "),
        (
            ["generate", "nowhere", "--to", "a"],
            "nowhere: there is no such run folder (train one first: mmgpt demo)",
        ),
        (
            ["train", "./toys.yaml", "train.stps=3"],
            "toys.yaml: train: unknown key 'stps' (did you mean 'steps'?)",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(command: Command, words: list[str], message: str) -> None:
    code, out, err = command(*words)
    assert (code, out) == (2, "")
    assert err.startswith(f"mmgpt: {message}")
    assert err.count("\n") == 1


def test_a_damaged_vocabulary_is_named(command: Command, home: Path, tmp_path: Path) -> None:
    (tmp_path / "vocabulary.json").write_text("{}", "utf-8")
    _, _, err = command("generate", tmp_path, "--to", "beats")
    assert "vocabulary.json: the file is damaged" in err


def test_ctrl_c_leaves_with_130(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("multimodal_gpt.recipe.load.names", interrupted)
    assert command("recipes")[0] == 130


def test_the_traceback_is_there_for_who_asks(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMGPT_TRACEBACK", "1")
    with pytest.raises(UserError):
        main(["train", "nowhere"])


def test_help_is_quick_and_shows_examples(command: Command) -> None:
    code, out, _ = command()
    assert code == 0
    verbs = ["recipes", "show", "copy", "validate", "schema"]
    verbs += ["prepare", "train", "generate", "continue", "fill", "vary", "inspect", "export", "demo"]
    assert all(f"  {verb} " in out for verb in verbs)
    for verb in verbs:
        assert "Example: mmgpt " + verb in command(verb, "--help")[1]
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "multimodal_gpt", "--help"], check=True, capture_output=True)
    assert time.perf_counter() - started < 5  # under 1 s on an idle machine


# Pieces


def test_given_modalities_are_taken_out_of_the_words() -> None:
    known = {"--to", "-n", "--help"}
    words = ["run", "--a", "-x y", "--to", "b", "--c=d=e", "-n", "2"]
    assert split_given(words, known) == (["run", "--to", "b", "-n", "2"], {"a": "-x y", "c": "d=e"})


@pytest.mark.parametrize(("text", "value"), [("0.5", 0.5), ("a=1,b=0.5", {"a": 1.0, "b": 0.5})])
def test_temperature(text: str, value: object) -> None:
    assert parse_temperature(text) == value


def test_wishes_are_told_from_what_is_given() -> None:
    given = {"a": "x", "b.key": "D", "b.range": "C4-A5"}
    assert split_wishes(given) == ({"a": "x"}, {"b": {"key": "D", "range": "C4-A5"}})


def test_bars() -> None:
    assert (parse_bars("5-8"), parse_bars(" 7 ")) == ((5, 8), (7, 7))
