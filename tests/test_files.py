"""Files that are whole or not there, and what killed processes leave."""

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time

import pytest
import torch

import snn_lowlat
from snn_lowlat import FileFormatError
from snn_lowlat.files import atomic_write, open_regular

WRITER = """
import sys, time
from snn_lowlat.files import atomic_write
with atomic_write(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""

needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks on this system")


def write(path, text="new"):
    with atomic_write(path) as temporary:
        temporary.write_text(text)


@needs_locks
def test_what_a_process_is_writing_stays_until_it_is_killed(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WRITER, str(tmp_path / "ann.pt")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "writing\n"
        (left,) = os.listdir(tmp_path)
        assert left.startswith(".snn_lowlat-ann-")
        assert left.endswith(".pt")
        write(tmp_path / "run.json")
        assert (tmp_path / left).read_text() == "half"
        writer.kill()
    write(tmp_path / "run.json")
    assert os.listdir(tmp_path) == ["run.json"]


def test_what_this_process_is_writing_stays(tmp_path):
    with atomic_write(tmp_path / "first") as first:
        write(tmp_path / "second")
        first.write_text("first")
    assert sorted(os.listdir(tmp_path)) == ["first", "second"]
    assert (tmp_path / "first").read_text() == "first"


def test_files_of_the_user_stay(tmp_path):
    names = [".config-abcdefgh.yaml", ".snn_lowlat-notes", "snn_lowlat-ann-abcdefgh.pt", ".ann-abcdefgh.pt"]
    for name in names:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".snn_lowlat-folder-abcdefgh").mkdir()
    write(tmp_path / "ann.pt")
    assert {*names, ".snn_lowlat-folder-abcdefgh", "ann.pt"} == set(os.listdir(tmp_path))


def test_a_failure_leaves_the_old_file_alone(tmp_path):
    write(tmp_path / "file", "old")
    with pytest.raises(TypeError):
        write(tmp_path / "file", text=None)
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def write_with_a_limit(folder, snn, images, other):
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    said = []
    for save in (lambda: snn.save(folder / "snn.pt"), lambda: snn_lowlat.to_nir(snn, images, folder / "snn.nir")):
        try:
            save()
        except OSError as error:
            said.append(str(error))
    other.send(said)


@needs_locks
def test_a_disk_that_is_full_is_told_and_the_old_file_stays(tmp_path):
    pytest.importorskip("nir", reason="the package nir is not installed: pip install 'snn_lowlat[nir]'")
    images = torch.rand(4, 8)
    network = torch.nn.Sequential(torch.nn.Linear(8, 200), torch.nn.ReLU(), torch.nn.Linear(200, 3))
    snn = snn_lowlat.convert(network, images, timesteps=2)
    for name in ("snn.pt", "snn.nir"):
        (tmp_path / name).write_text("old")
    here, there = multiprocessing.Pipe()
    arguments = (tmp_path, snn, images, there)
    process = multiprocessing.get_context("fork").Process(target=write_with_a_limit, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0
    said = here.recv()
    for name in ("snn.pt", "snn.nir"):
        message = f"{name} could not be written, the file that was there is unchanged: File too large"
        assert any(message in sentence for sentence in said)
        assert (tmp_path / name).read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["snn.nir", "snn.pt"]


def test_the_result_is_as_readable_as_any_file(tmp_path):
    write(tmp_path / "ours")
    (tmp_path / "plain").write_text("")
    modes = [stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("ours", "plain")]
    assert modes[0] == modes[1]


def test_names_as_long_as_they_may_be_are_written(tmp_path):
    name = "x" * 240 + ".pt"
    write(tmp_path / name)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(("path", "error"), [("", ValueError), (".", ValueError), ("/", ValueError)])
def test_paths_that_name_no_file_are_refused(path, error):
    with pytest.raises(error, match="names no file"):
        write(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes on this system")
def test_a_pipe_does_not_wait_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    begun = time.monotonic()
    with pytest.raises(FileFormatError, match="is a pipe"):
        open_regular(tmp_path / "pipe")
    assert time.monotonic() - begun < 5
