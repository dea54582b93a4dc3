"""The conformance kit: does a modality keep every promise of the plugin contract?

    python -m multimodal_gpt.testing ./my_modality.py k=3
    check_tokenizer("./my_modality.py", options={"k": 3}, samples=["ACGT"])

Needs numpy and the standard library only; the checks themselves are in conformance.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multimodal_gpt import conformance
from multimodal_gpt.conformance import Case, ConformanceError, brief, expect, named, short
from multimodal_gpt.errors import UserError
from multimodal_gpt.stream import plugins
from multimodal_gpt.stream.plugins import Modality
from multimodal_gpt.stream.tokenizer import Tokenizer

__all__ = ["ConformanceError", "Report", "check_tokenizer"]


@dataclass(frozen=True)
class Report:
    """What was checked: the plugin, and the names of the checks it passed."""

    plugin: str
    passed: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.plugin}: {len(self.passed)} checks passed: {', '.join(self.passed)}"


def check_tokenizer(
    plugin: Any, *, samples: Sequence[Any] | None = None, options: Mapping[str, Any] | None = None
) -> Report:
    """Check a plugin against the whole contract.

    Args:
        plugin: an installed plugin's name, a path to a `.py` file, or a tokenizer that is already built.
        samples: contents to try besides random ones; a plugin that learns is fitted on them first.
        options: the options of `build`.

    Raises ConformanceError naming the check that failed, the ids or the content, and what was
    expected; UserError where the plugin can't be built.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = tuple(samples or ())
        modality, tokenizer = _open(plugin, given, dict(options or {}), Path(folder))
        passed = _run_checks(Case(tokenizer, modality, Path(folder), given))
    name = str(plugin) if modality else type(plugin).__name__
    return Report(name, passed)


def _open(
    plugin: Any, samples: Sequence[Any], options: dict[str, Any], folder: Path
) -> tuple[Modality | None, Tokenizer]:
    if not isinstance(plugin, str | Path):
        if options:
            raise UserError("options are for a plugin given by name or path", "check_tokenizer")
        return None, plugin
    modality = Modality("plugin", str(plugin), options)
    if hasattr(plugins.load_module(modality.plugin), "fit"):
        modality = _fitted(modality, samples, folder)
    return modality, plugins.build(modality, folder)


def _fitted(modality: Modality, samples: Sequence[Any], folder: Path) -> Modality:
    with tempfile.TemporaryDirectory() as name:  # what has learnt nothing must already read and parse
        plugins.build(plugins.fit(modality, (), Path(name)), Path(name))
    with tempfile.TemporaryDirectory() as name:
        again = plugins.fit(modality, iter(samples), Path(name))
        second = {p.name: p.read_bytes() for p in Path(name).iterdir()}
    fitted = plugins.fit(modality, iter(samples), folder)
    first = {p.name: p.read_bytes() for p in folder.iterdir()}
    if first != second or fitted.options != again.options:
        raise ConformanceError("fit: learning twice from the same contents gave different results")
    return fitted


def _run_checks(case: Case) -> tuple[str, ...]:
    offered = [check for hook, check in HOOKS.items() if hasattr(case.tokenizer, hook)]
    return tuple(_run(check, case) for check in (*CHECKS, *offered))


def _run(check: Callable[[Case], None], case: Case) -> str:
    name = check.__name__.removeprefix("check_")
    try:
        check(case)
    except ConformanceError as error:
        raise ConformanceError(f"{name}: {error}") from error.__cause__
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a Rust library is no Exception
        raise ConformanceError(f"{name}: raised {named(error)}") from error
    return name


def check_pickle(case: Case) -> None:
    """A pickled copy, of the tokenizer and of the contents, answers the same."""
    tokenizer, contents = pickle.loads(pickle.dumps((case.tokenizer, case.contents)))
    _expect_same(_answers(tokenizer, contents), case, "a pickled copy")


def check_rebuild(case: Case) -> None:
    """The same plugin built again from the same options answers the same."""
    if case.modality is not None:
        again = plugins.build(case.modality, case.folder)
        _expect_same(_answers(again, case.contents), case, "a tokenizer rebuilt from its options")


def check_spawn(case: Case) -> None:
    """Another process, with another hash seed, unpickles the tokenizer, rebuilds it, and answers the same."""
    question, answer = case.folder / "question.pickle", case.folder / "answer.json"
    packed = pickle.dumps((case.tokenizer, case.contents))
    question.write_bytes(pickle.dumps((case.modality, case.folder, packed)))
    # Not multiprocessing: its spawn runs the main script again, which may be the one that checks.
    call = "import sys; from multimodal_gpt.testing import _answer; _answer(*sys.argv[1:])"
    path = os.pathsep.join(p or str(Path.cwd()) for p in sys.path)
    done = subprocess.run(
        [sys.executable, "-c", call, str(question), str(answer)],
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=False,
    )
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    expect(done.returncode == 0, f"the tokenizer does not work in a new process: {last}")
    for how, got in json.loads(answer.read_text(encoding="utf-8")).items():
        _expect_same(got, case, f"{how} in a new process")


def _answer(question: str, answer: str) -> None:
    modality, folder, packed = pickle.loads(Path(question).read_bytes())
    # Built first, so that a plugin file's module is there when its tokenizer is unpickled.
    built = {} if modality is None else {"a tokenizer rebuilt": plugins.build(modality, folder)}
    unpickled, contents = pickle.loads(packed)
    made = {**built, "a tokenizer unpickled": unpickled}
    answers = {how: _answers(tokenizer, contents) for how, tokenizer in made.items()}
    Path(answer).write_text(json.dumps(answers), encoding="utf-8")


def _answers(tokenizer: Tokenizer, contents: Sequence[Any]) -> dict[str, Any]:
    table = np.ascontiguousarray(tokenizer.grammar().next_state)
    return {
        "size": tokenizer.size,
        "grammar": hashlib.sha256(table.tobytes()).hexdigest(),
        "ids": [tokenizer.encode(content).tolist() for content in contents],
    }


def _expect_same(got: dict[str, Any], case: Case, whose: str) -> None:
    expected = _answers(case.tokenizer, case.contents)
    for key in ("size", "grammar"):
        expect(got[key] == expected[key], f"{whose} has another {key}: {got[key]}, not {expected[key]}")
    for content, ids, wanted in zip(case.contents, got["ids"], expected["ids"], strict=True):
        expect(ids == wanted, f"{whose} encodes {short(content)} as {brief(ids)}, not {brief(wanted)}")


def check_follow(case: Case) -> None:
    """A counter told ids one by one gives the times of `clock`, and so does the next counter."""
    tokenizer: Any = case.tokenizer
    for ids in case.walks:
        expected, counter = tokenizer.clock(ids), tokenizer.follow()
        times = [counter(local) for local in ids.tolist()]
        wrong = np.flatnonzero(np.abs(np.array(times) - expected) > 1e-5 * np.maximum(1, expected))
        places = wrong[:1].tolist()
        expect(not places, f"follow() told {brief(ids)} differs from their clock at place {places}")


CHECKS = (
    conformance.check_members,
    conformance.check_grammar,
    conformance.check_walks,
    conformance.check_samples,
    conformance.check_illegal,
    conformance.check_cuts,
    conformance.check_clock,
    conformance.check_files,
    conformance.check_bad_files,
    conformance.check_parse,
    conformance.check_describe,
    conformance.check_show,
    check_pickle,
    check_rebuild,
    check_spawn,
    conformance.check_size,
)
HOOKS = {
    "follow": check_follow,
    "shift": conformance.check_shift,
    "shift_ids": conformance.check_shift_ids,
    "shingles": conformance.check_shingles,
    "read_part": conformance.check_read_part,
    "compose": conformance.check_compose,
}
"""Optional members, and the check for each."""


def main(arguments: Sequence[str]) -> int:
    """`PLUGIN [option=value ...]`; gives the exit code: 0 passed, 1 a promise is broken, 2 wrong use."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m multimodal_gpt.testing NAME|./FILE.py [option=value ...]")
        return 0 if arguments else 2
    try:
        print(check_tokenizer(arguments[0], options=dict(map(_option, arguments[1:]))))
    except ConformanceError as error:
        print(f"{arguments[0]}: {error}", file=sys.stderr)
        return 1
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _option(argument: str) -> tuple[str, Any]:
    name, equals, value = argument.partition("=")
    if not equals:
        raise UserError(f"'{argument}' is not option=value", "command line")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
