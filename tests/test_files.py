import errno
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest
from conftest import ROOT
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from hf_pneumonia.data.files import DICOM, IMAGE, UNNAMED, atomic_write, build_once, kind_by_name


def test_file_types_follow_the_extension_in_any_case_and_names_without_one_are_unnamed():
    kinds = {"a.JPeG": IMAGE, "a.dcm": DICOM, "IM0001": UNNAMED, "1.2.840.10008": UNNAMED}
    kinds |= {f"a{ending}": IMAGE for ending in ImageFolder.EXTENSIONS} | {"notes.txt": None}
    assert {name: kind_by_name(name) for name in kinds} == kinds


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_keeps_the_old_file_and_the_error_names_it(tmp_path, error):
    path = tmp_path / "scores.csv"
    path.write_text("before")
    with pytest.raises(type(error)), atomic_write(path) as aside:
        aside.write_text("half")
        raise error
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    assert getattr(error, "filename", str(path)) == str(path)


FILES = {"images.uint8": b"\1" * 100, "facts.npy": b"facts"}


def _build(folder: Path) -> None:
    for name, content in FILES.items():
        (folder / name).write_bytes(content)


def _content(parent: Path) -> dict[str, bytes]:
    return {str(path.relative_to(parent)): path.read_bytes() for path in parent.rglob("*") if path.is_file()}


def test_a_folder_is_built_once_and_a_failed_build_leaves_nothing(tmp_path):
    folder = tmp_path / "cache" / "key"
    with pytest.raises(OSError) as error:
        build_once(folder, Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    assert list(folder.parent.iterdir()) == [] and error.value.filename == str(folder.parent)
    build_once(folder, _build)
    build_once(folder, lambda _: pytest.fail("built again"))
    assert _content(tmp_path / "cache") == {f"key/{name}": content for name, content in FILES.items()}


@pytest.mark.parametrize(
    "name, content",
    [("images.uint8", b"\1" * 99), ("images.uint8", b"\1" * 99 + b"\2"), ("facts.npy", None)]
    + [("whole.json", content) for content in (None, b"{}", b"[[[[")],
    ids=range(6),
)
def test_a_damaged_folder_is_rebuilt_with_one_warning(tmp_path, caplog, name, content):
    folder = tmp_path / "key"
    build_once(folder, _build, sealed=True)
    whole = _content(tmp_path)
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    build_once(folder, _build, sealed=True)
    assert _content(tmp_path) == whole
    (record,) = caplog.records
    assert name in record.message and "\n" not in record.message
    build_once(folder, lambda _: pytest.fail("built again"), sealed=True)


KILLED = """
import os, signal, sys
from pathlib import Path
from hf_pneumonia.data.files import build_once

def build(folder):
    (folder / "images.uint8").write_bytes(bytes(100_000))
    os.kill(os.getpid(), signal.SIGKILL)

build_once(Path(sys.argv[1]), build)
"""


def test_the_next_build_removes_what_a_killed_process_left(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "key")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "key").exists() and list(tmp_path.rglob("images.uint8"))
    build_once(tmp_path / "another", _build)
    assert _content(tmp_path) == {f"another/{name}": content for name, content in FILES.items()}


def test_of_two_concurrent_builds_the_second_waits_and_builds_nothing(tmp_path):
    builds = []

    def build_slowly(folder):
        builds.append(folder)
        time.sleep(0.5)
        _build(folder)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(build_once, [tmp_path / "key"] * 2, [build_slowly] * 2))
    assert len(builds) == 1 and [path.name for path in tmp_path.iterdir()] == ["key"]
