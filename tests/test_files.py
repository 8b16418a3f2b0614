import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from hf_pneumonia.data.files import DICOM, IMAGE, UNNAMED, build_once, kind_by_name, written_whole


def test_a_file_is_known_by_its_ending_in_any_case_and_a_film_of_an_archive_by_having_none():
    kinds = {"a.JPeG": IMAGE, "a.dcm": DICOM, "IM0001": UNNAMED, "1.2.840.10008": UNNAMED}
    kinds |= {f"a{ending}": IMAGE for ending in ImageFolder.EXTENSIONS} | {"notes.txt": None}
    assert {name: kind_by_name(name) for name in kinds} == kinds


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_is_cut_short_leaves_what_was_there_and_says_which_file(tmp_path, error):
    path = tmp_path / "scores.csv"
    path.write_text("before")
    with pytest.raises(type(error)), written_whole(path) as aside:
        aside.write_text("half")
        raise error
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    assert getattr(error, "filename", str(path)) == str(path)


FILES = {"films.uint8": b"\1" * 100, "facts.npy": b"facts"}


def _build(folder: Path) -> None:
    for name, content in FILES.items():
        (folder / name).write_bytes(content)


def _content(parent: Path) -> dict[str, bytes]:
    return {str(path.relative_to(parent)): path.read_bytes() for path in parent.rglob("*") if path.is_file()}


def test_a_folder_is_built_once_nothing_lies_beside_it_and_a_build_that_fails_leaves_nothing(tmp_path):
    folder = tmp_path / "cache" / "key"
    with pytest.raises(ZeroDivisionError):
        build_once(folder, lambda aside: (_build(aside), 1 / 0))
    assert list(folder.parent.iterdir()) == []
    build_once(folder, _build)
    build_once(folder, lambda _: pytest.fail("built again"))
    assert _content(tmp_path / "cache") == {f"key/{name}": content for name, content in FILES.items()}


@pytest.mark.parametrize(
    "name, content",
    [("films.uint8", b"\1" * 99), ("films.uint8", b"\1" * 99 + b"\2"), ("facts.npy", None)]
    + [("whole.json", content) for content in (None, b"{}", b"[[[[")],
    ids=range(6),
)
def test_what_was_damaged_on_the_disk_is_built_anew_which_one_line_says(tmp_path, caplog, name, content):
    folder = tmp_path / "key"
    build_once(folder, _build, sealed=True)
    whole = _content(tmp_path)
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    build_once(folder, _build, sealed=True)
    assert _content(tmp_path) == whole
    (record,) = caplog.records
    assert name in record.message and "\n" not in record.message
    build_once(folder, lambda _: pytest.fail("built again"), sealed=True)


# Asked to build a folder, it does something in the middle of that.
BUILDER = """
import os, signal, sys
from pathlib import Path
from hf_pneumonia.data.files import build_once
from hf_pneumonia.errors import run_script

def build(folder):
    (folder / "films.uint8").write_bytes(bytes(100_000))
    exec(sys.argv[2])

sys.exit(run_script("build", lambda _: build_once(Path(sys.argv[1]), build), []))
"""


def _builder(folder: Path, meanwhile: str, start: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    command = [*start, sys.executable, "-c", BUILDER, str(folder), meanwhile]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_what_a_killed_builder_left_is_not_trusted_and_taken_away_by_the_next(tmp_path):
    done = _builder(tmp_path / "key", "os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "key").exists() and list(tmp_path.rglob("films.uint8"))
    build_once(tmp_path / "another", _build)
    assert _content(tmp_path) == {f"another/{name}": content for name, content in FILES.items()}


def test_of_two_that_start_at_once_the_second_waits_and_builds_nothing(tmp_path, caplog):
    caplog.set_level("INFO")
    building, go_on, builds = threading.Event(), threading.Event(), []

    def slowly(folder):
        builds.append(folder)
        building.set()
        assert go_on.wait(30)
        _build(folder)

    threads = [threading.Thread(target=build_once, args=(tmp_path / "key", slowly)) for _ in range(2)]
    threads[0].start()
    assert building.wait(30)
    threads[1].start()
    while "waiting for it" not in caplog.text:
        time.sleep(0.01)
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(builds) == 1 and [path.name for path in tmp_path.iterdir()] == ["key"]


MOUNTED = """
set -e
mount -t tmpfs -o size=64k,{options} none "$0"
"$@"
"""


@pytest.mark.parametrize(
    "options, reason", [("rw", "No space left on device"), ("ro", "Read-only file system")]
)
def test_a_disk_that_is_full_or_read_only_is_one_line_that_says_which(tmp_path, options, reason):
    (tmp_path / "disk").mkdir()
    start = ("unshare", "-rm", "bash", "-c", MOUNTED.format(options=options), str(tmp_path / "disk"))
    done = _builder(tmp_path / "disk" / "cache" / "key", "", start)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no disk of one's own can be mounted here: {done.stderr.splitlines()[0]}")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert f"{tmp_path}/disk/cache" in line and reason in line
