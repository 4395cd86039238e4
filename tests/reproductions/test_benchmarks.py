"""The benchmark measures what it says: workloads, targets, records and pages."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import diffrax_environment, driver
from benchmarks.diffrax_environment import PeerUnavailable, interpreter
from benchmarks.limits import Cost, cost, limit
from benchmarks.measuring import ABSOLUTE, SCALED, Entry, Pace, Tally, in_rounds, ratio
from benchmarks.report import markdown, summary
from benchmarks.scaling import SWEEPS
from benchmarks.targets import COMPARISONS, TARGETS, compared
from benchmarks.torch_peers import contestants, skipped
from benchmarks.workloads import WORKLOADS, Flow, perceptron
from typer.testing import CliRunner

from ctflow import CtflowError
from ctflow.cli.app import app

SIZES = {
    "spiral-mlp": ([(20, 2)], 252, 50, 1e-6),
    "cnf-2d": ([(512, 2), (512, 1)], 4546, 2, 1e-5),
    "latent-ode": ([(1000, 4)], 604, 100, 1e-6),
    "odenet-conv": ([(128, 64, 7, 7)], 75392, 2, 1e-3),
}
OURS = Entry("ctflow native", "forward", "forward")
PEER = Entry("torchdiffeq", "forward", "forward")


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_has_the_size_it_is_known_by(name: str) -> None:
    """Shapes, parameters, times and tolerance; everything in float32."""
    case = WORKLOADS[name].case()
    shapes = [tuple(leaf.shape) for leaf in case.leaves]
    assert (shapes, case.n_parameters, len(case.t), case.tolerance) == SIZES[name]
    assert {leaf.dtype for leaf in case.leaves} == {torch.float32}


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_seed_draws_the_same_numbers_in_either_precision(name: str) -> None:
    """The float64 reference solves the problem that the others solve."""
    single, double = (WORKLOADS[name].case(3, 2, d) for d in (torch.float32, torch.float64))
    assert all((a.double() == b).all() for a, b in zip(single.leaves, double.leaves, strict=True))
    pairs = zip(single.field.parameters(), double.field.parameters(), strict=True)
    assert all((a.double() == b).all() for a, b in pairs)


@pytest.mark.parametrize("tape", [True, False], ids=["autograd", "torch.func"])
def test_the_trace_of_the_flow_is_that_of_its_jacobian(tape: bool) -> None:
    """Both ways of taking it agree with the whole Jacobian of one point at a time."""
    torch.manual_seed(0)
    net = perceptron(3, 8, 2).double()
    x, t = torch.randn(5, 2, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    rows = [
        torch.autograd.functional.jacobian(lambda p: net(torch.cat([p, t.reshape(1)])), point)
        for point in x
    ]
    with torch.no_grad():
        _, rate = Flow(net, tape=tape)(t, (x, torch.zeros(5, 1, dtype=torch.float64)))
    torch.testing.assert_close(-rate[:, 0], torch.stack([row.trace() for row in rows]))


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_has_a_target_for_every_comparison(name: str) -> None:
    """The table is complete."""
    assert set(TARGETS) == set(WORKLOADS)
    assert len(TARGETS[name]) == len(COMPARISONS)


def test_a_comparison_is_made_round_by_round() -> None:
    """A drift that slows every second round down leaves the ratio alone."""
    samples = {OURS.key: [1.0, 10.0, 1.0], PEER.key: [30.0, 300.0, 30.0]}
    assert ratio(samples, PEER.key, OURS.key).median == 30.0
    (band,) = compared(
        "spiral-mlp", [OURS, PEER], samples, ["forward", "torchdiffeq"], {PEER.key: 1e-6}
    )
    assert (band.name, band.value, band.passed) == ("forward vs torchdiffeq", 30.0, True)


def test_a_peer_that_was_asked_for_and_is_missing_reaches_no_target() -> None:
    """What was not measured is not claimed."""
    (band,) = compared("spiral-mlp", [OURS], {OURS.key: [1.0]}, ["forward", "diffrax"], {})
    assert not band.passed
    assert band.record()["value"] is None


@pytest.mark.parametrize(("error", "wanted"), [(0.03, 4.0), (0.04, 4.0), (0.05, 0.5)])
def test_the_peers_tolerance_counts_where_the_error_is_not_the_peers_larger(
    error: float, wanted: float
) -> None:
    """Speed that was bought with accuracy reaches no target."""
    own = Entry("ctflow compiled", "adjoint", "adjoint")
    theirs = Entry("ctflow compiled", ABSOLUTE, "adjoint")
    peer = Entry("torchdiffeq", "adjoint", "adjoint")
    scaled = Entry("torchdiffeq", SCALED, "adjoint")  # not the peer as its users have it
    samples = {own.key: [8.0], theirs.key: [1.0], peer.key: [4.0], scaled.key: [0.1]}
    errors = {own.key: 0.01, theirs.key: error, peer.key: 0.04, scaled.key: 0.01}
    entries, asked = [own, theirs, peer, scaled], ["adjoint", "torchdiffeq"]
    (band,) = compared("odenet-conv", entries, samples, asked, errors)
    assert band.value == wanted


def test_torchdiffeq_enters_once_more_with_the_tolerance_that_ours_has() -> None:
    """Its absolute tolerance in units of the incoming gradient."""
    case = WORKLOADS["odenet-conv"].case(rows=2)
    entered = {each.key: each for each in contestants(case) if each.entry.task == "adjoint"}
    assert {f"ctflow compiled {ABSOLUTE}", f"torchdiffeq {SCALED}"} <= set(entered)
    plain, scaled = (entered[f"torchdiffeq {mode}"] for mode in ("adjoint", SCALED))
    assert (scaled.tally().backward or 0) > (plain.tally().backward or 0)


class Counter:
    """Takes as long as it is told, and remembers when its turn was."""

    def __init__(self, key: str, milliseconds: float, turns: list[str]) -> None:
        self.key, self.milliseconds, self.turns = key, milliseconds, turns

    def first(self) -> float:
        return self.milliseconds / 1e3

    def measure(self, seconds: float) -> float:
        self.turns.append(self.key)
        return self.milliseconds


def test_rounds_begin_with_another_contestant_each_time() -> None:
    """And each has one turn in each."""
    turns: list[str] = []
    timed = [Counter(key, 1.0, turns) for key in "abc"]
    in_rounds(timed, Pace(3, 0.0), lambda _: None)
    assert "".join(turns) == "abcbcacab"


def test_a_slow_contestant_sits_the_later_rounds_out() -> None:
    """So that minutes go to those whose times scatter."""
    timed = [Counter("quick", 1.0, []), Counter("slow", 6e3, [])]
    samples = in_rounds(timed, Pace(4, 0.0, slow=5.0, few=2), lambda _: None)
    assert samples == {"quick": [1.0] * 4, "slow": [6e3, 6e3, None, None]}


def test_the_limit_is_evaluations_times_their_cost() -> None:
    """A direct gradient needs one VJP for each evaluation; others evaluate again backwards."""
    price = cost(
        {
            "f, chain of 1": [5.0],
            "f, chain of 5": [13.0],
            "f and VJP, chain of 1": [9.0],
            "f and VJP, chain of 5": [33.0],
        }
    )
    assert price == Cost(2.0, 6.0)
    assert limit(OURS, Tally(10, 0, 1, 0), price) == 20.0
    assert limit(Entry("x", "direct", "exact"), Tally(10, 0, 1, 0), price) == 60.0
    assert limit(Entry("x", "direct", "exact"), Tally(10, 1, 1, 0), price) == 60.0
    assert limit(Entry("x", "adjoint", "adjoint"), Tally(10, 7, 1, 0), price) == 62.0


def test_torchode_is_passed_by_where_it_cannot_take_the_state() -> None:
    """With the reason, and without an entry."""
    case = WORKLOADS["cnf-2d"].case(rows=2)
    assert any("one tensor [batch, feature]" in line for line in skipped(case))
    assert not any(each.entry.library == "torchode" for each in contestants(case))


def test_an_environment_that_pip_cannot_fill_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason, and where pip's own words are."""
    monkeypatch.setattr(diffrax_environment, "PINNED", ("--no-index", "no-such-package==0"))
    with pytest.raises(PeerUnavailable, match=r"pip cannot install it: .*see .*pip\.log"):
        interpreter(lambda _: None, tmp_path / "environment")


@pytest.fixture
def only_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes longer than a test may."""
    monkeypatch.setattr("benchmarks.torch_peers.available", lambda: ("native",))


@pytest.mark.usefixtures("only_native")
def test_bench_runs_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smoke preset takes the real path; a broken diffrax is one line, and no more."""
    smoke = replace(driver.PRESETS["smoke"], results=tmp_path, diffrax_python=sys.executable)
    monkeypatch.setitem(driver.PRESETS, "smoke", smoke)
    arguments = ["bench", "spiral-mlp", "--preset", "smoke", "--skip", "torchode"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "spiral-mlp-1-thread"
    record = json.loads((folder / "smoke.json").read_text())
    _check_schema(record)
    assert [line.split(":")[0] for line in record["skipped"]][-1] == "diffrax"
    page = (folder / "smoke.md").read_text()
    assert "| ctflow native | checkpointed |" in page
    assert "not measured" in page
    assert "| spiral-mlp | 1 | gradient |" in summary([record])


def _check_schema(record: dict[str, Any]) -> None:
    """What a reader of the results may rely on."""
    keys = {"workload", "config", "command", "environment", "rows", "cost_ms", "skipped"}
    assert set(record) == keys | {"targets", "bands", "samples_ms"}
    assert record["command"].startswith("ctflow bench spiral-mlp --preset smoke --threads 1")
    assert record["bands"]
    for row in record["rows"]:
        assert row["milliseconds"]["low"] <= row["milliseconds"]["median"]
        assert row["evaluations"]["forward"] > row["steps"]["accepted"] > 0
        assert 0 <= row["error"] < 1e-3


def test_the_page_of_a_workload_names_what_it_was_made_with() -> None:
    """Commit, versions, machine and command."""
    record: dict[str, Any] = {
        "workload": WORKLOADS["cnf-2d"].case(rows=2).record(),
        "config": {"threads": 2, "seed": 0, "rounds": 3},
        "command": "ctflow bench cnf-2d",
        "environment": {
            "versions": {"torch": "9.9"},
            "machine": {"processor": "Z80", "cpus": 1, "system": "Linux"},
            "commit": "abc",
        },
        "skipped": ["torchode: too old"],
        "targets": [],
    }
    page = markdown(record, [])
    assert page.startswith("# cnf-2d, 2 threads\n")
    assert "`ctflow bench cnf-2d`, seed 0, 3 rounds, commit abc. Z80" in page
    assert "Skipped: torchode: too old" in page


def test_an_unknown_workload_is_refused_with_the_names_there_are() -> None:
    """A misspelt name is answered by the list."""
    with pytest.raises(CtflowError, match="there are: spiral-mlp, cnf-2d"):
        driver.main(["spiral"], driver.PRESETS["smoke"])


@pytest.mark.usefixtures("only_native")
def test_a_scaling_run_ends_in_a_record_and_a_figure(tmp_path: Path) -> None:
    """The smoke preset measures the two smallest sizes."""
    pytest.importorskip("matplotlib")
    smoke = replace(driver.PRESETS["smoke"], results=tmp_path, skip=("diffrax",))
    (record,) = driver.main(["scaling-batch"], smoke)
    assert driver.passed(record)
    files = {path.name for path in (tmp_path / "scaling-batch").iterdir()}
    assert files == {"smoke.json", "smoke.png"}


@pytest.mark.parametrize("size", [1e3, 1e4, 1e5, 1e6, 1e7])
def test_a_network_of_the_parameter_sweep_has_as_many_as_asked_for(size: float) -> None:
    """Within the rounding of its width."""
    case = SWEEPS["scaling-parameters"].make(size, driver.PRESETS["smoke"])
    assert case.n_parameters == pytest.approx(size, rel=0.05)


@pytest.mark.parametrize(("error", "stands"), [(0.03, True), (0.05, False)])
def test_the_summary_has_our_faster_row_where_no_peer_is_the_better(
    error: float, *, stands: bool
) -> None:
    """With the peers' absolute tolerance ours must not be farther off than they are."""
    folder = Path(driver.__file__).parents[1] / "results/benchmarks/odenet-conv-1-thread"
    record = json.loads((folder / "quick.json").read_text(encoding="utf-8"))
    for row in record["rows"]:
        if row["task"] == "adjoint":
            row["error"] = error if row["mode"] == ABSOLUTE else 0.04
    assert (f"(compiled {ABSOLUTE})" in summary([record])) == stands
