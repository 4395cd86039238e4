"""A checkpoint is written as a whole, believed where it is whole and its own, and then enough."""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from _harness import loop, stopping
from _harness.checkpoints import Checkpoint, check_folder
from _harness.loop import Training, Unfinished
from _harness.session import Session, run_session
from torch import Tensor, nn

from ctflow import CtflowError
from ctflow.cli.checkout import load_script

ROOT = Path(__file__).parents[2]
SETTINGS = {"seed": 0, "rate": 0.1}


def saved(folder: Path) -> Checkpoint:
    """A checkpoint that was saved twice."""
    checkpoint = Checkpoint(folder / "a.pt", SETTINGS)
    checkpoint.save({"x": torch.ones(1000), "done": 1})
    checkpoint.save({"x": torch.ones(1000), "done": 2})
    return checkpoint


def test_the_last_state_is_read_and_the_one_before_is_kept(tmp_path: Path) -> None:
    """Two files, and nothing else."""
    checkpoint, said = saved(tmp_path), list[str]()
    state = checkpoint.load(said.append)
    assert state is not None
    assert (state["done"], said) == (2, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.previous.pt", "a.pt"]


def test_a_process_killed_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    """The last state is not in its place yet, the one before is."""
    checkpoint, said = saved(tmp_path), list[str]()
    checkpoint.path.rename(tmp_path / ".a.pt.writing")
    state = checkpoint.load(said.append)
    assert state is not None
    assert (state["done"], said) == (1, [])
    checkpoint.save({"done": 3})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.previous.pt", "a.pt"]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused_and_the_previous_one_used(
    tmp_path: Path, share: float
) -> None:
    """Wherever it ends; one line says so."""
    checkpoint, said = saved(tmp_path), list[str]()
    whole = checkpoint.path.read_bytes()
    checkpoint.path.write_bytes(whole[: int(share * len(whole))])
    state = checkpoint.load(said.append)
    assert state is not None
    assert state["done"] == 1
    assert said == ["a.pt is not used: it is truncated, damaged, or no checkpoint"]


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_one_flipped_bit_is_noticed(tmp_path: Path, place: float) -> None:
    """Also within the numbers, where it would go unseen."""
    checkpoint, said = saved(tmp_path), list[str]()
    content = bytearray(checkpoint.path.read_bytes())
    content[int(place * len(content))] ^= 1
    checkpoint.path.write_bytes(content)
    state = checkpoint.load(said.append)
    assert state is not None
    assert state["done"] == 1
    assert len(said) == 1


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    """With what differs; if both files are, the training begins anew."""
    saved(tmp_path)
    said: list[str] = []
    other = Checkpoint(tmp_path / "a.pt", {"seed": 1, "rate": 0.1})
    assert other.load(said.append) is None
    assert said == [
        "a.pt is not used: it is of seed = 0, not 1",
        "a.previous.pt is not used: it is of seed = 0, not 1",
        "a begins anew",
    ]


def test_a_checkpoint_of_another_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another torch rounds otherwise."""
    checkpoint, said = saved(tmp_path), list[str]()
    monkeypatch.setattr("torch.__version__", "1.0")
    assert checkpoint.load(said.append) is None
    assert "it is of torch = " in said[0]


class Trap:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[object, ...]:
        """Leave a trace."""
        return os.mkdir, ("trapped",)


def test_a_file_that_wants_to_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a state as in a bare pickle; nothing is run."""
    monkeypatch.chdir(tmp_path)
    checkpoint, said = saved(tmp_path), list[str]()
    checkpoint.save({"x": Trap()})
    state = checkpoint.load(said.append)
    assert state is not None
    assert state["done"] == 2
    assert said == ["a.pt is not used: it holds more than tensors and plain values"]
    checkpoint.path.write_bytes(pickle.dumps(Trap()))
    assert checkpoint.load(said.append) is not None
    assert not (tmp_path / "trapped").exists()


def test_what_was_saved_before_is_left_alone_by_a_fresh_call(tmp_path: Path) -> None:
    """It is not used, and what the fresh call saves is."""
    fresh = replace(saved(tmp_path), after=9e9)
    assert fresh.load(lambda _: None) is None
    assert replace(fresh, after=0.0).load(lambda _: None) is not None


@contextlib.contextmanager
def small_files(n_bytes: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, as where a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_state_that_does_not_fit_leaves_the_last_one(tmp_path: Path) -> None:
    """One line, and no half of a file."""
    checkpoint = saved(tmp_path)
    with (
        small_files(2000),
        pytest.raises(CtflowError, match=r"cannot be written to .*saved before"),
    ):
        checkpoint.save({"x": torch.ones(10_000), "done": 3})
    state = checkpoint.load(lambda _: None)
    assert state is not None
    assert state["done"] == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_is_one_line_before_any_work(tmp_path: Path) -> None:
    """Nothing is left behind."""
    with small_files(2000), pytest.raises(CtflowError, match="Nothing was trained") as caught:
        check_folder(tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_one_line_before_any_work(tmp_path: Path) -> None:
    """By a script as it is called; a file stands where the folder should be."""
    pytest.importorskip("matplotlib")
    (tmp_path / "file").touch()
    script = load_script(ROOT, "augmented")
    config = replace(script.PRESETS["smoke"], results=tmp_path / "file" / "augmented")
    with pytest.raises(CtflowError, match=r"not a directory\. Nothing was trained") as caught:
        script.main(config)
    assert "\n" not in str(caught.value)


def training(folder: Path | None = None, *, late: bool = False) -> Training:
    """A small training that draws from every source of random numbers."""
    torch.manual_seed(0)
    np.random.seed(0)
    model = nn.Linear(2, 1)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, 3, 0.5)

    def loss(x: Tensor) -> Tensor:
        return (model(x) - float(np.random.rand())).square().mean()

    session = Session("test", SETTINGS, folder, until=-1.0 if late else torch.inf)
    generator = torch.Generator().manual_seed(0)
    return session.training(
        model, optimiser, loss, schedule=schedule, name="small", clip=1.0,
        generators={"rows": generator},
    )  # fmt: skip


def finished(one: Training, until: int = 8) -> Tensor:
    """Its weights after so many steps."""
    for _ in one.steps(until):
        x = torch.randn(4, 2) + torch.rand((), generator=one.generators["rows"])
        one.notes.setdefault("losses", []).append(one.descend(x))
    return one.model.weight.detach().clone()


def test_a_training_that_was_stopped_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    """Weights, moments, rate, random numbers and notes go on; every slice does one step."""
    unbroken = training()
    wanted = finished(unbroken)
    for _ in range(7):
        with pytest.raises(Unfinished):
            finished(training(tmp_path, late=True))
    last = training(tmp_path)
    assert last.done == 7
    assert torch.equal(finished(last), wanted)
    assert last.notes == unbroken.notes
    assert torch.equal(finished(training(tmp_path)), wanted)  # nothing more is done


def signalled(one: Training, at: int, number: int, times: int) -> None:
    """Train, and send a signal to this process at one of the steps."""
    for step in one.steps(8):
        one.descend(torch.randn(4, 2))
        for _ in range(times if step == at else 0):
            os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_saves_and_says_how_to_go_on(
    number: int, error: type[BaseException], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the step that it arrives in; then it ends as such a signal does."""
    stopping.forget()
    one = training(tmp_path)
    before = signal.getsignal(number)
    with pytest.raises(error) as caught:
        signalled(one, at=2, number=number, times=1)
    stopping.forget()
    assert signal.getsignal(number) is before
    text = "small stopped at step 3 of 8 and is saved: the same command goes on from there\n"
    assert capsys.readouterr().err == text
    assert training(tmp_path).done == 3
    if isinstance(caught.value, SystemExit):
        assert caught.value.code == 128 + signal.SIGTERM


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    """What was saved before stays."""
    stopping.forget()
    with pytest.raises(KeyboardInterrupt):
        signalled(training(tmp_path), at=0, number=signal.SIGINT, times=2)
    stopping.forget()
    assert list(tmp_path.iterdir()) == []


def test_a_training_is_saved_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without being asked."""
    monkeypatch.setattr(loop, "_EVERY", 0.0)
    for step in training(tmp_path).steps(8):
        if step == 5:
            break
    assert training(tmp_path).done == 5


def test_a_finished_script_leaves_no_state_and_a_fresh_one_uses_none(tmp_path: Path) -> None:
    """Between the call that was stopped and the one that goes on, `resume` decides."""
    script = load_script(ROOT, "augmented")
    config = replace(script.PRESETS["smoke"], results=tmp_path)
    began: list[int] = []

    def work(config: object, console: object, session: Session) -> dict[str, object]:
        model = nn.Linear(2, 1)
        optimiser = torch.optim.Adam(model.parameters())
        one = session.training(model, optimiser, lambda x: model(x).sum(), name="small")
        began.append(one.done)
        for _ in one.steps(4):
            one.descend(torch.randn(4, 2))
        return {"bands": []}

    for changes in ({"minutes": 0.0}, {"minutes": 0.0}, {"minutes": 0.0, "resume": False}, {}):
        run_session("augmented", replace(config, **changes), work)
    assert began == [0, 1, 0, 1]
    assert list(tmp_path.iterdir()) == []
