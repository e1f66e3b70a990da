"""What the command line answers: exit statuses, sentences on stderr, and what is kept."""

from __future__ import annotations

import csv
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from lightning import Trainer

from snn_lowlat.cli.hints import hint, null_group, unknown_key
from snn_lowlat.cli.interruptions import Interrupted, StopsAtOnce, interruptible
from snn_lowlat.cli.limits import cores
from snn_lowlat.cli.record import alone_in
from snn_lowlat.run import command_line
from snn_lowlat.training import Classifier, FineTuning
from snn_lowlat.training.checkpointing import WholeCheckpoints

FAST = ("threads=1", "model.width=4", "trainer.accelerator=cpu", "device=cpu", "timesteps=1", "data.limit_test=50")

Command = Callable[..., int]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """Run a command in this process, in a folder of its own; return its exit status."""
    at_exit: list[Callable[[], None]] = []
    monkeypatch.setattr("snn_lowlat.cli.leaderboard.atexit.register", at_exit.append)
    monkeypatch.chdir(tmp_path)
    root, levels = logging.getLogger(), {}
    handlers, level = list(root.handlers), root.level
    for name in ("lightning.pytorch", "lightning.fabric"):
        levels[name] = logging.getLogger(name).level

    def run(*arguments: str) -> int:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["snn_lowlat", *arguments, *FAST])
        try:
            command_line()
        except SystemExit as end:
            return int(end.code or 0)
        finally:
            for last in at_exit:
                last()
        return 0

    yield run
    GlobalHydra.instance().clear()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int, epoch: int, module: type = Classifier) -> None:
    """Send this process a signal in the middle of an epoch."""
    step = module.training_step  # type: ignore[attr-defined]

    def stops(classifier: Any, batch: Any, index: int) -> Any:
        if classifier.current_epoch == epoch and index == 3:
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        return step(classifier, batch, index)

    monkeypatch.setattr(module, "training_step", stops)


def leaderboard() -> list[dict[str, str]]:
    with Path("sweep/leaderboard.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_training_that_is_told_to_stop_says_what_is_kept_and_goes_on(
    command: Command, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    options = ("trainer.max_epochs=3", "training=adamw", "evaluation.timesteps=[1]", "+trainer.limit_train_batches=5")
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, number, epoch=2)
        assert command(*options, "hydra.run.dir=cut") == 128 + number
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    errors = capsys.readouterr().err
    place = Path("cut").resolve()
    assert f"Stopped by {number.name}. Kept in {place}: the training up to its last whole epoch" in errors
    assert f"hydra.run.dir={place} 'resume=${{folder}}' goes on" in errors
    assert "Traceback" not in errors
    assert not Path("cut/results.csv").exists()
    assert torch.load("cut/checkpoints/last.ckpt")["epoch"] == 1
    if number == signal.SIGINT:
        return
    assert command(*options, "hydra.run.dir=cut", "resume=${folder}") == 0
    # As far as training goes, the run is the one that was begun without `resume`.
    written = Path("cut/snn.pt").stat().st_mtime_ns
    assert command(*options, "hydra.run.dir=cut") == 0
    assert Path("cut/snn.pt").stat().st_mtime_ns == written
    assert command(*options, "hydra.run.dir=whole") == 0
    whole, cut = (torch.load(f"{name}/ann.pt")["state_dict"] for name in ("whole", "cut"))
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())


def test_a_sweep_that_is_told_to_stop_starts_no_further_run(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []
    step = Classifier.on_train_epoch_start

    def counts(classifier: Classifier) -> None:
        begun.append(classifier)
        if len(begun) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        step(classifier)

    monkeypatch.setattr(Classifier, "on_train_epoch_start", counts)
    sweep = (
        "--multirun",
        "hydra.sweep.dir=sweep",
        "trainer.max_epochs=2",
        "seed=1,2,3",
        "+trainer.limit_train_batches=5",
    )
    assert command(*sweep) == 143
    errors = capsys.readouterr().err
    assert f"The same command with hydra.sweep.dir={Path('sweep').resolve()} goes on with this run" in errors
    rows = leaderboard()
    assert [(row["run"], row["error"]) for row in rows] == [("0", ""), ("1", "it did not finish")]
    assert not Path("sweep/2").exists()
    assert command(*sweep) == 0
    assert len(begun) == 3 + 4
    assert [row["error"] for row in leaderboard()] == [""] * 3


def test_fine_tuning_that_is_told_to_stop_keeps_the_converted_network(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, signal.SIGTERM, epoch=1, module=FineTuning)
    options = ("trainer.max_epochs=1", "fine_tuning=sgl", "fine_tuning.max_epochs=2", "hydra.run.dir=run")
    assert command(*options) == 143
    errors = capsys.readouterr().err
    assert "(fine_tuning/checkpoints/last.ckpt), the trained network (ann.pt), the spiking network (snn.pt)" in errors
    monkeypatch.undo()


def test_a_run_that_is_told_to_stop_before_it_has_anything_says_so(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, signal.SIGTERM, epoch=0)
    assert command("trainer.max_epochs=1", "hydra.run.dir=run") == 143
    errors = capsys.readouterr().err
    assert "had finished nothing yet. The same command with hydra.run.dir=" in errors
    assert "resume" not in errors


def test_a_failed_run_does_not_stop_a_sweep_and_is_in_the_leaderboard(command: Command) -> None:
    sweep = ("--multirun", "hydra.sweep.dir=sweep", "trainer.max_epochs=1", "strategy.threshold=mmse,ceiling,max")
    assert command(*sweep) == 1
    rows = {row["run"]: row for row in leaderboard()}
    assert [rows[run]["error"] == "" for run in ("0", "1", "2")] == [True, False, True]
    assert "threshold=ceiling needs an activation with a trained ceiling" in rows["1"]["error"]
    assert "strategy.threshold=ceiling" in rows["1"]["overrides"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["strategy=null"], "strategy=null is no choice. There are: distribution_aware, optimized_potential"),
        (["trainer/logger=null"], "trainer/logger=null is no choice. There are: csv, tensorboard. Leave it out"),
        (["trainer/callbacks=[checkpint]"], "Did you mean 'checkpoint'? There are: checkpoint, early_stopping"),
        (["timestep=2"], "Did you mean 'timesteps'?"),
        (["trainer.max_epochs=two"], "trainer.max_epochs must be a whole number of at least 1, not 'two'."),
    ],
)
def test_what_can_not_be_is_answered_in_a_sentence(
    command: Command, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert command(*arguments) == 1
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


def test_hints_name_the_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snn_lowlat.cli.hints.find_spec", lambda name: None)
    for name, extra in (
        *(("joblib", "sweep"), ("ray", "ray"), ("optuna", "optuna")),
        *(("cluster", "cluster"), ("cluster_local", "cluster")),
    ):
        assert f"pip install 'snn_lowlat[{extra}]'" in str(hint([f"+sweep={name}"]))
    asked = []
    monkeypatch.setattr("snn_lowlat.cli.hints.find_spec", lambda name: asked.append(name) or name)
    for name in ("joblib", "ray", "optuna", "cluster", "cluster_local"):
        assert hint([f"+sweep={name}"]) is None
    assert {name.removeprefix("hydra_plugins.hydra_") for name in asked} == {
        *("joblib_launcher", "ray_launcher", "optuna_sweeper", "submitit_launcher")
    }


def test_hints_are_given_for_what_is_wrong_only() -> None:
    assert unknown_key(["data=image_folder", "data.root=/nowhere"]) is None
    assert hint(["+experiment=quickstart", "data=image_folder", "data.root=/nowhere", "seed=1,2"]) is None
    assert hint(["strategy=value_range,threshold_balancing", "trainer/callbacks=[checkpoint,early_stopping]"]) is None
    assert "unknown option of strategy 'valu_range'" in str(hint(["strategy=value_range,valu_range"]))
    assert null_group(["strategy=value_range", "resume=null", "data.mean=null", "~trainer/callbacks"]) is None


def test_options_without_effect_are_named(command: Command, caplog: pytest.LogCaptureFixture) -> None:
    arguments = ("trainer.max_epochs=1", "training=datta_beerel", "training.schedule=cosine", "training.gamma=0.5")
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("snn_lowlat.run").addHandler(handler)
    try:
        assert command(*arguments, "report.images=5", "hydra.run.dir=first", "training.temperature=2") == 0
        weights = f"model.weights={Path('first/ann.pt').resolve()}"
        assert command(weights, "hydra.run.dir=second", "trainer.max_epochs=1", "training.learning_rate=0.1") == 0
    finally:
        logging.getLogger("snn_lowlat.run").removeHandler(handler)
    idle = [sentence for sentence in said if "has no effect" in sentence]
    assert idle[:3] == [
        "training.gamma=0.5 has no effect: training.schedule is cosine, not step.",
        "report.images=5 has no effect: report=none measures nothing; choose report=html or markdown.",
        "training.temperature=2 has no effect: training.distillation is 0.",
    ]
    reason = "has no effect: model.weights makes the training needless."
    assert {sentence.split(" ")[0] for sentence in idle[3:] if reason in sentence} == {
        *("trainer.accelerator=cpu", "trainer.max_epochs=1", "training.learning_rate=0.1")
    }


def test_errors_are_sentences(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("model.weights=/nowhere.pt", "hydra.run.dir=run") == 1
    errors = capsys.readouterr().err
    assert "nowhere.pt" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "Training needs more memory than there is: lower data.batch_size. What was finished"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "lower data.batch_size"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "lower data.batch_size"),
        (OSError(28, "No space left on device", "x.pt"), "is on is full, or a file may not be larger"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"), "is on is full"),
    ],
)
def test_a_machine_with_too_little_is_told_so(
    command: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    message: str,
) -> None:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Classifier, "training_step", fails)
    assert command("trainer.max_epochs=1", "hydra.run.dir=run") == 1
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


def work_in(folder: Path, other: Any) -> None:
    with alone_in(folder):
        other.send("there")
        other.recv()


def test_two_runs_in_one_folder_are_kept_apart(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    here, there = multiprocessing.Pipe()
    other = multiprocessing.get_context("fork").Process(target=work_in, args=(Path("run"), there))
    other.start()
    assert here.recv() == "there"
    assert command("trainer.max_epochs=1", "hydra.run.dir=run") == 1
    errors = capsys.readouterr().err
    assert f"another run works in {Path('run').resolve()}, process {other.pid} on " in errors
    assert not Path("run/run.json").exists()
    # However a process ends, it lets go; its file stays.
    other.kill()
    other.join()
    assert Path("run/run.lock").exists()
    with alone_in(Path("run")):
        assert Path("run/run.lock").read_text().startswith(f"{os.getpid()} on ")
    assert not Path("run/run.lock").exists()


def test_more_processes_than_cores_are_refused(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(f"trainer.devices={cores() + 5}", "trainer.max_epochs=1") == 1
    assert f"this machine has {cores()} processor cores" in capsys.readouterr().err


def test_a_sweep_of_trainings_in_several_processes_is_refused(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--multirun", "hydra.sweep.dir=sweep", "trainer.devices=2", "trainer.strategy=ddp", "seed=1,2") == 1
    assert "trainer.devices=2 and --multirun don't go together" in capsys.readouterr().err
    assert "don't go together" in leaderboard()[1]["error"]


def test_a_checkpoint_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced: list[tuple[Path, Path]] = []
    replace = Path.replace

    def notes(source: Path, target: Path) -> Path:
        replaced.append((source, target))
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", notes)
    writer, file = WholeCheckpoints(), tmp_path / "checkpoints" / "last.ckpt"
    writer.save_checkpoint({"epoch": 1}, str(file))
    assert [(source.parent, target) for source, target in replaced] == [(file.parent, file)]
    write = Path.write_bytes

    def fails(place: Path, content: memoryview) -> None:
        write(place, content[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(OSError, match="No space"):
        writer.save_checkpoint({"epoch": 2}, file)
    assert torch.load(file) == {"epoch": 1}
    assert list(file.parent.iterdir()) == [file]


def test_checkpoints_need_no_folder_for_temporary_files(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    options = ("trainer.max_epochs=1", "fine_tuning=sgl", "fine_tuning.max_epochs=1", "hydra.run.dir=run")
    assert command(*options) == 0
    assert torch.load("run/checkpoints/last.ckpt")["epoch"] == 0
    assert torch.load("run/fine_tuning/checkpoints/last.ckpt")["epoch"] == 0


def told_and_failing() -> None:
    with interruptible():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            raise RuntimeError("a process that loads data was killed")


def test_what_fails_while_all_is_cleared_away_hides_no_signal() -> None:
    with pytest.raises(Interrupted) as caught:
        told_and_failing()
    assert caught.value.status == 143


def test_a_training_from_python_ends_at_once_too(tmp_path: Path) -> None:
    """Without a handler of its own, a process that gets SIGTERM ends by it."""
    seen = []
    callback = StopsAtOnce()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    with interruptible():
        expected = signal.getsignal(signal.SIGTERM)
        callback.setup(trainer, Classifier(torch.nn.Linear(1, 2), 2), "fit")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        callback.on_train_start(trainer, Classifier(torch.nn.Linear(1, 2), 2))
        seen.append(signal.getsignal(signal.SIGTERM))
    assert seen == [expected]


def begin(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    package = str(Path(__file__).resolve().parents[1])
    return subprocess.Popen(
        [sys.executable, "-m", "snn_lowlat.run", *arguments, *FAST, "trainer.max_epochs=2000"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(file: Path) -> None:
    for _ in range(600):
        if file.exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"{file} has not been written")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("options", [(), ("data.num_workers=1",)])
@pytest.mark.parametrize("group", [False, True])
def test_a_process_that_is_told_to_stop_ends_with_its_status(
    tmp_path: Path, number: signal.Signals, options: tuple[str, ...], group: bool
) -> None:
    process = begin(tmp_path, "hydra.run.dir=run", *options)
    wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt")
    (os.killpg if group else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert errors.count(f"Stopped by {number.name}. Kept in ") == 1
    # Processes that load data may complain when they are stopped.
    assert options or "Traceback" not in errors
    assert not (tmp_path / "run" / "run.lock").exists()


@pytest.mark.slow
@pytest.mark.skipif(cores() < 2, reason="two processes need two cores")
def test_processes_that_train_together_are_stopped_together(tmp_path: Path) -> None:
    process = begin(tmp_path, "hydra.run.dir=run", "trainer.strategy=ddp", "trainer.devices=2")
    wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt")
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert errors.count("Stopped by SIGTERM. Kept in ") == 1
    # communicate() has waited for all that write to the pipe: no other process is left.


@pytest.mark.slow
def test_a_sweep_of_processes_ends_with_its_status(tmp_path: Path) -> None:
    process = begin(tmp_path, "--multirun", "hydra.sweep.dir=sweep", "seed=1,2", "hydra.job.chdir=false")
    wait_for(tmp_path / "sweep" / "0" / "checkpoints" / "last.ckpt")
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "it did not finish" in (tmp_path / "sweep" / "leaderboard.md").read_text()
    assert not (tmp_path / "sweep" / "1").exists()
