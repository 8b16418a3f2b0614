import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, write_film

from hf_pneumonia.data import cache, locks, store_folder
from hf_pneumonia.data.cache import open_store
from hf_pneumonia.errors import UsageError, run_script


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / "given" / f"{number}.png" for number in range(6)]
    for path in paths:
        write_film(path, 1, rng)
    return [{"path": str(path), "bytes": None} for path in paths]


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _store(cache_dir: Path) -> Path:
    (folder,) = (cache_dir / "films").iterdir()
    return folder


def _truncate(folder):
    content = (folder / "films.uint8").read_bytes()
    (folder / "films.uint8").write_bytes(content[:-1])


def _flip(folder):
    content = bytearray((folder / "films.uint8").read_bytes())
    content[100] ^= 1
    (folder / "films.uint8").write_bytes(content)


DAMAGE = {
    "films.uint8 has 6,143 bytes, and had 6,144": _truncate,
    "films.uint8 is not what was written": _flip,
    "copies.npz has 4 bytes": lambda folder: (folder / "copies.npz").write_bytes(b"PK\3\4"),
    "facts.npy is missing": lambda folder: (folder / "facts.npy").unlink(),
    "index.json has 1 bytes": lambda folder: (folder / "index.json").write_text("{"),
    "whole.json says nothing": lambda folder: (folder / "whole.json").write_text("[[[["),
    "whole.json is missing": lambda folder: (folder / "whole.json").unlink(),
    "whole.json is empty": lambda folder: (folder / "whole.json").write_text("{}"),
}


@pytest.mark.parametrize("problem", DAMAGE)
def test_a_store_that_was_damaged_on_the_disk_is_built_anew_and_said_to_be_in_one_line(
    images, tmp_path, caplog, problem
):
    caplog.set_level("WARNING", "hf_pneumonia")
    open_store(images, 32, tmp_path)
    folder = _store(tmp_path)
    whole = _files(folder)
    DAMAGE[problem](folder)
    open_store(images, 32, tmp_path)
    assert _files(_store(tmp_path)) == whole
    (record,) = caplog.records
    assert problem in record.message and "\n" not in record.message
    caplog.clear()
    open_store(images, 32, tmp_path)
    assert not caplog.records


def test_a_large_file_is_held_to_its_size(images, tmp_path, monkeypatch, caplog):
    caplog.set_level("WARNING", "hf_pneumonia")
    monkeypatch.setattr(store_folder, "_SUMMED_UP", 1000)
    open_store(images, 32, tmp_path)
    _flip(_store(tmp_path))
    open_store(images, 32, tmp_path)
    assert not caplog.records
    _truncate(_store(tmp_path))
    open_store(images, 32, tmp_path)
    assert "films.uint8 has" in caplog.text


def test_a_file_that_was_replaced_by_one_of_its_size_and_time_is_noticed(images, tmp_path):
    first = open_store(images, 32, tmp_path)[[0]].copy()
    path = Path(images[0]["path"])
    before, pixels = path.stat(), path.read_bytes()
    other = Path(images[1]["path"]).read_bytes()
    size = max(len(pixels), len(other))
    for content, changed in ((pixels, False), (other, True)):
        aside = path.with_suffix(".new")
        aside.write_bytes(content.ljust(size, b"\0"))
        os.utime(aside, ns=(before.st_atime_ns, before.st_mtime_ns))
        aside.replace(path)
        assert (path.stat().st_mtime_ns, path.stat().st_size) == (before.st_mtime_ns, size)
        assert np.array_equal(open_store(images, 32, tmp_path)[[0]], first) != changed


def test_films_that_change_or_go_away_while_they_are_decoded_make_no_store(images, tmp_path, monkeypatch):
    build = cache._build

    def meanwhile(rows, size, folder):
        build(rows, size, folder)
        Path(rows[0]["path"]).unlink()

    monkeypatch.setattr(cache, "_build", meanwhile)
    with pytest.raises(UsageError, match="films changed or went away while they were decoded"):
        open_store(images, 32, tmp_path)
    assert list((tmp_path / "films").iterdir()) == []


def test_what_killed_builders_left_is_taken_away_and_what_a_living_one_builds_is_not(images, tmp_path):
    parent = tmp_path / "films"
    for name in ("building-dead1-x", "building-alive-x", "building-stale-x", "building-oldname"):
        (parent / name).mkdir(parents=True)
        (parent / name / "films.uint8").write_bytes(b"half")
    handles = [open(parent / f".{key}.lock", "w") for key in ("alive", "stale")]
    for handle in handles:
        fcntl.flock(handle, fcntl.LOCK_EX)
    long_ago = time.time() - 2 * 24 * 3600
    for place in (parent / "building-stale-x" / "films.uint8", parent / "building-stale-x"):
        os.utime(place, (long_ago, long_ago))
    open_store(images, 32, tmp_path)
    assert [path.name for path in parent.glob("building-*")] == ["building-alive-x"]
    for handle in handles:
        handle.close()


BUILDER = """
import json, sys
from pathlib import Path
from hf_pneumonia.data.cache import open_store
print(len(open_store(json.loads(sys.argv[1]), 32, Path(sys.argv[2]))))
"""


def _builder(images, cache_dir):
    command = [sys.executable, "-c", BUILDER, json.dumps(images), str(cache_dir)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )  # fmt: skip


def test_a_build_that_is_killed_half_way_leaves_nothing_that_the_next_start_trusts(images, tmp_path):
    open_store(images, 32, tmp_path / "undisturbed")
    pipe = tmp_path / "given" / "5.png"
    content = pipe.read_bytes()
    status = pipe.stat()
    pipe.unlink()
    os.mkfifo(pipe)  # the builder waits here, with five films written
    killed = _builder(images, tmp_path / "cache")
    deadline = time.monotonic() + 60
    while not list((tmp_path / "cache").glob("films/building-*/films.uint8")):
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    pipe.unlink()
    pipe.write_bytes(content)
    os.utime(pipe, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert list((tmp_path / "cache" / "films").glob("building-*"))
    open_store(images, 32, tmp_path / "cache")
    assert _files(_store(tmp_path / "cache")) == _files(_store(tmp_path / "undisturbed"))


def test_of_two_that_start_at_once_the_second_waits_and_decodes_nothing(
    images, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO")
    building, go_on, builds = threading.Event(), threading.Event(), []
    build = cache._build

    def slowly(rows, size, folder):
        builds.append(folder)
        building.set()
        assert go_on.wait(30)
        build(rows, size, folder)

    monkeypatch.setattr(cache, "_build", slowly)
    stores = []
    threads = [
        threading.Thread(target=lambda: stores.append(open_store(images, 32, tmp_path))) for _ in range(2)
    ]
    threads[0].start()
    assert building.wait(30)
    threads[1].start()
    while "waiting for it" not in caplog.text:
        time.sleep(0.01)
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(builds) == 1 and len(stores) == 2 and np.array_equal(stores[0][range(6)], stores[1][range(6)])
    assert [path.name for path in (tmp_path / "films").iterdir()] == [builds[0].name.split("-")[1]]


def test_without_locks_both_build_and_one_of_the_stores_is_kept(images, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    together = threading.Barrier(2)
    build = cache._build

    def at_once(rows, size, folder):
        together.wait(30)
        build(rows, size, folder)

    monkeypatch.setattr(cache, "_build", at_once)
    stores = []
    threads = [
        threading.Thread(target=lambda: stores.append(open_store(images, 32, tmp_path))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 2 and len(list((tmp_path / "films").iterdir())) == 1


MOUNTED = """
set -e
mount -t tmpfs -o size={size} none "$1"
{prepare}
"$2" -c "$3" "$4" "$1/cache"
"""


def _in_mounted(images, tmp_path, size, prepare=""):
    """Exit code and stderr of a builder whose cache is a small disk of its own, which a namespace makes."""
    code = BUILDER.replace(
        "print(", "from hf_pneumonia.errors import run_script\nsys.exit(run_script('build', lambda _: print("
    )
    code = code.rstrip() + ", []))\n"
    (tmp_path / "disk").mkdir()
    command = ["unshare", "-rm", "bash", "-c", MOUNTED.format(size=size, prepare=prepare), "x"]
    done = subprocess.run(
        [*command, str(tmp_path / "disk"), sys.executable, code, json.dumps(images)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no disk of one's own can be mounted here: {done.stderr.splitlines()[0]}")
    return done


def test_a_full_disk_is_one_line_that_says_which(images, tmp_path):
    done = _in_mounted(images * 20, tmp_path, "64k")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert f"{tmp_path}/disk/cache/films" in line and "No space left on device; free some space" in line


def test_a_disk_that_is_read_only_is_one_line_that_says_which(images, tmp_path):
    done = _in_mounted(images, tmp_path, "1m", 'mount -o remount,ro "$1"')
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert f"{tmp_path}/disk/cache" in line and "Read-only file system" in line


def test_a_store_on_a_disk_that_is_read_only_serves_as_before(images, tmp_path):
    prepare = '"$2" -c "$3" "$4" "$1/cache"; mount -o remount,ro "$1"'
    done = _in_mounted(images, tmp_path, "4m", prepare)
    assert (done.returncode, done.stdout.split()) == (0, ["6", "6"]), done.stderr


def test_run_script_is_what_those_lines_come_from(capsys):
    def fail(_):
        raise OSError(28, "No space left on device", "/x")

    assert run_script("build", fail, []) == 2 and "/x: No space left" in capsys.readouterr().err
