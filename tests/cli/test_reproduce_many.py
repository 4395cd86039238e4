"""Several reproductions at once: processes, summary, exit codes, interruption, going on."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from ctflow.cli.app import app
from ctflow.cli.outcome import Outcome, main
from ctflow.cli.progress import Bars, progress_of, told
from ctflow.cli.registry import Listed, listing, named
from ctflow.cli.summary import accepted, print_summary
from ctflow.cli.workers import Run, Task
from ctflow.errors import CtflowError

pytestmark = pytest.mark.once

SCRIPT = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
from ctflow import InvalidProblem
from ctflow.errors import MissingDependency


@dataclass(frozen=True)
class Config:
    preset: str
    {fields}


PRESETS = {{"smoke": Config("smoke"), "quick": Config("quick")}}


def main(config):
    print("step 1/4 loss 0.5 evaluations 14.0")
    {body}
"""
BAND = {"name": "error", "value": 1.5, "low": None, "high": 2.0, "paper": 0.42}
PASSED, MISSED = {**BAND, "passed": True}, {**BAND, "value": 3.0, "passed": False}
SCRIPTS = {
    "good": ("seed: int = 0", f"return {{'bands': [{PASSED}]}}"),
    "bad": ("seed: int = 0", f"return {{'bands': [{PASSED}, {MISSED}]}}"),
    "broken": ("seed: int = 0", "raise ValueError('no\\nluck')"),
    "lacking": ("seed: int = 0", "raise MissingDependency('there are no data here.')"),
    "seedless": ("", f"return {{'bands': [{PASSED}]}}"),
    "slow": (
        "seed: int = 0",
        "Path(__file__).with_suffix('.begun').touch()\n    time.sleep(60)",
    ),
}


def checkout(folder: Path, *names: str) -> Path:
    """A source checkout with some of the scripts."""
    (folder / "reproductions").mkdir(parents=True)
    (folder / "pyproject.toml").write_text('[project]\nname = "ctflow"\n')
    for name in names:
        fields, body = SCRIPTS[name]
        path = folder / "reproductions" / f"{name}.py"
        path.write_text(SCRIPT.format(fields=fields, body=body))
    return folder


def run(*arguments: object) -> Result:
    """What a command line does."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


REGISTRY = (
    "from types import SimpleNamespace as N\n"
    "REPRODUCTIONS = (N(name='good', of='Table 7', shows='all', minutes={'quick': 2.0},"
    " aliases=('table7',), alone=True),)\n"
)


def with_registry(root: Path) -> Path:
    """The checkout, whose registry knows `good`: it goes by table7 too, and must run alone."""
    (root / "reproductions/_harness").mkdir()
    (root / "reproductions/_harness/registry.py").write_text(REGISTRY)
    return root


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The checkouts whose page was written."""
    written: list[Path] = []
    monkeypatch.setattr("ctflow.cli.reproduce.write_page", lambda _, root: written.append(root))
    return written


def test_one_that_fails_stops_no_other_and_all_are_summed_up(
    tmp_path: Path, pages: list[Path]
) -> None:
    """Numbers, missing data and failures, a line each; a failure is exit code 2."""
    root = with_registry(checkout(tmp_path, "bad", "broken", "good", "lacking", "seedless"))
    result = run("reproduce", "all", "--root", root, "--seed", 1, "--workers", 2, "--check")
    assert result.exit_code == 2, result.output
    assert pages == [root]
    before, summary = result.output.split("Summary")
    row = next(line for line in summary.splitlines() if "MISS" in line)
    assert row.split() == ["error", "3", "0.42", "at", "most", "2", "MISS"]
    assert "ValueError: no luck" in summary
    assert "there are no data here." in summary
    assert "seedless takes no --seed" in summary
    assert "2 of 3 numbers are within their bands; runs: 2 done, 1 failed, 2 skipped" in summary
    log = root / "reproductions/results/.runs/quick/broken.log"
    assert "Traceback" in log.read_text()
    assert "Traceback" not in result.output
    lines = before.splitlines()  # `good` runs alone: after the others, and nothing beside it
    assert lines[-2].startswith("good: started")
    assert lines[-1] == "[4/4] good: 1 numbers ok, " + lines[-1].rsplit(" ", 1)[1]


def test_what_is_done_is_not_done_again_and_a_miss_is_exit_code_1_with_check(
    tmp_path: Path,
) -> None:
    """`--resume` takes the outcomes of the same command, and of no other."""
    root = checkout(tmp_path, "bad", "good")
    logs = root / "reproductions/results/.runs/quick"
    logs.mkdir(parents=True)
    for name, bands in (("good", [PASSED]), ("bad", [PASSED, MISSED])):
        command = f"ctflow reproduce {name} --preset quick"
        Outcome("done", bands=bands, command=command).write(logs / f"{name}.json")
    arguments = ("reproduce", "good", "bad", "--root", root, "--resume")
    again = run(*arguments)
    assert again.exit_code == 0
    assert "good: done before; 1 numbers ok" in again.output
    assert "bad: done before; 1 of 2 numbers MISSED" in again.output
    assert "started" not in again.output
    assert run(*arguments, "--check").exit_code == 1
    for name in ("good", "bad"):  # nothing that could be started: only what is kept is asked
        (root / f"reproductions/{name}.py").write_text("PRESETS = {}")
    assert "done before" not in run(*arguments, "--seed", 1).output


def test_ctrl_c_ends_every_process_and_says_how_to_go_on(tmp_path: Path) -> None:
    """What has not begun is not begun; exit code 130."""
    root = checkout(tmp_path, "good", "slow")
    words = ["reproduce", "slow", "good", "--root", str(root), "--preset", "smoke"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ctflow", *words],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # else as it is for us
    )
    begun = root / "reproductions/slow.begun"
    until = time.monotonic() + 60
    while not begun.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert begun.exists()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "slow: stopped" in output
    assert "ctflow reproduce slow good --preset smoke --workers 1 --resume" in output
    assert not (root / "reproductions/results/.runs/smoke/good.log").exists()
    log = root / "reproductions/results/.runs/smoke/slow.log"
    assert Outcome.read(log.with_suffix(".json")).ended == "stopped"


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    """One line, exit code 2, nothing started."""
    root = checkout(tmp_path, "good", "bad")
    (root / "reproductions/results").write_text("a file where the folder should be")
    result = run("reproduce", "all", "--root", root)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "results cannot be written" in result.stderr
    assert "started" not in result.output


def test_a_run_whose_time_is_up_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on with `--resume`, and so must not be taken for done then."""
    late = {"name": "finished", "value": 0.0, "low": 1.0, "high": None, "passed": False}
    monkeypatch.setattr("ctflow.cli.outcome.run_script", lambda *_: [late])
    path = tmp_path / "x.json"
    assert main([str(tmp_path), "x", "full", '{"minutes": 1}', str(path)]) == 1
    assert Outcome.read(path).ended == "stopped"


def test_a_process_that_dies_without_a_word_has_failed(tmp_path: Path) -> None:
    """With the signal and the last line of its log."""
    log = tmp_path / "x.log"
    log.write_text("step 3/4 loss 0.1\n")
    process = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    process.wait()
    with log.open("ab") as output:
        outcome = Run(Task("x", {}), process, log, tmp_path / "x.json", output).outcome()
    assert outcome.ended == "failed"
    assert outcome.reason == "its process ended with signal 9; step 3/4 loss 0.1"


def test_a_terminal_shows_a_bar_with_loss_and_evaluations(tmp_path: Path) -> None:
    """The last line of the run beside its bar, and what has ended above."""
    log = tmp_path / "x.log"
    log.write_text("step 1/4 loss 0.5 evaluations 14.0\n")
    process = subprocess.Popen([sys.executable, "-c", ""])
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with log.open("ab") as output, Bars(console, 2) as bars:
        shown = Run(Task("digits", {}), process, log, tmp_path / "x.json", output)
        bars.running([shown])
        bars.ended(shown.task, Outcome("done", bands=[PASSED], seconds=61.0))
    process.wait()
    assert "loss 0.5 evaluations 14.0" in out.getvalue()
    assert "━" in out.getvalue()
    assert "digits: 1 numbers ok, 1:01" in out.getvalue()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("epoch 3/24  loss 0.31", (3, 24)),
        ("20 events: step 12 of 1500, -ELBO 3.2", (12, 1500)),
        ("latent ODE, 30/100, seed 0: step 5 of 10", (30, 100)),
        ("density at 0.50", None),
        ("loss 1/0", None),
        ("7/3 of them", None),
    ],
)
def test_how_far_it_is_is_read_from_the_line(line: str, found: tuple[int, int] | None) -> None:
    """Where it says so."""
    assert progress_of(line) == found


def test_a_summary_aligns_its_columns() -> None:
    """Every number ends where its heading ends."""
    out = io.StringIO()
    outcomes = {"x": Outcome("done", bands=[PASSED, {**MISSED, "paper": None}])}
    print_summary(Console(file=out, width=100), outcomes)
    lines = out.getvalue().splitlines()
    head = next(line for line in lines if "ours" in line)
    rows = [line for line in lines if "error" in line]
    for heading, cells in (("ours", ("1.5", "3")), ("the paper's", ("0.42", "-"))):
        end = head.index(heading) + len(heading)
        assert [row[:end].split()[-1] for row in rows] == list(cells)
    assert accepted(None, None) == "anything"


def test_a_registry_gives_aliases_times_and_order(tmp_path: Path) -> None:
    """Its entries first; a script that it does not know is still there."""
    root = with_registry(checkout(tmp_path, "good", "bad"))
    assert [each.name for each in listing(root)] == ["good", "bad"]
    assert named(root, ["table7", "good"]) == [
        Listed("good", "Table 7", "all", {"quick": 2.0}, ("table7",), alone=True)
    ]
    text = run("reproduce", "--list", "--root", root).output
    assert "good (also table7)" in text
    assert "quick 2 min" in text
    with pytest.raises(CtflowError, match="there are: bad, good"):
        named(root, ["table8"])


def test_no_name_is_answered_by_how_to_find_one(tmp_path: Path) -> None:
    """One line."""
    result = run("reproduce", "--root", checkout(tmp_path, "good"))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "--list" in result.stderr


def test_an_outcome_that_was_not_written_whole_is_none(tmp_path: Path) -> None:
    """A half file is not taken for a run that is done."""
    path = tmp_path / "x.json"
    Outcome("done").write(path)
    assert Outcome.read(path) == Outcome("done")
    path.write_text(path.read_text()[:10])
    with pytest.raises(CtflowError, match="holds no outcome"):
        Outcome.read(path)
    path.write_text(json.dumps({"ended": "done", "other": 1}))
    with pytest.raises(CtflowError, match="holds no outcome"):
        Outcome.read(path)
    assert told(Outcome("stopped", "killed")) == "stopped: killed"
