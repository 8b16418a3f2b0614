import io
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

from hf_pneumonia.data.film import read_film
from hf_pneumonia.errors import UnreadableFilm
from hf_pneumonia.page import decoder as module
from hf_pneumonia.page.decoder import COULD_NOT_COPE, Decoder
from hf_pneumonia.page.decoding_process import NO_MEMORY
from hf_pneumonia.page.limits import MAX_FILE_BYTES, MAX_PIXELS

SLOPE = np.arange(60 * 50, dtype=np.uint16).reshape(60, 50)


def _saved(pixels: np.ndarray, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def _dicom() -> bytes:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = SLOPE.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME1"
    dataset.BitsAllocated, dataset.BitsStored, dataset.PixelRepresentation = 16, 12, 0
    dataset.PixelData = SLOPE.tobytes()
    dataset.PatientName = "Somebody"
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


@pytest.fixture(scope="module")
def decoder():
    with Decoder() as decoder:
        yield decoder


@pytest.fixture
def never_ending(tmp_path):
    """A path whose reading never ends."""
    os.mkfifo(tmp_path / "film.png")
    return str(tmp_path / "film.png")


FILM = _saved((SLOPE // 12).astype(np.uint8), "PNG")
FILMS = {
    "JPEG": _saved((SLOPE // 12).astype(np.uint8), "JPEG"),
    "PNG of 16 bits": _saved(SLOPE, "PNG"),
    "colour PNG": _saved(np.stack([SLOPE // 12] * 3, -1).astype(np.uint8), "PNG"),
    "DICOM": _dicom(),
}


def _pids(decoder: Decoder) -> list[int]:
    return [process.pid for process in decoder._processes]


def _runs(pid: int) -> bool:
    """Whether a process that may be somebody else's child, or nobody's, still runs."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second where it ends while it is read
        return False


def _until(condition, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize("kind", FILMS)
@pytest.mark.parametrize("as_path", [False, True])
def test_a_film_is_the_one_that_read_film_gives(decoder, tmp_path, kind, as_path):
    source = FILMS[kind]
    if as_path:
        (tmp_path / "Röntgen ☢.film").write_bytes(source)
        source = str(tmp_path / "Röntgen ☢.film")
    film, expected = decoder.read(source), read_film(source)
    assert film.mode == "L"
    np.testing.assert_array_equal(np.asarray(film), np.asarray(expected))
    assert all(
        film.info[name] == value for name, value in expected.info.items() if name in ("hues", "modality")
    )


@pytest.mark.parametrize(
    "damage", [b"", b"<html>", FILM[:-40], FILM.replace(b"IDAT", b"IDAD"), "/no/such/film"]
)
def test_what_is_no_film_gets_the_reason_that_read_film_gives(decoder, damage):
    with pytest.raises(UnreadableFilm) as expected:
        read_film(damage)
    with pytest.raises(UnreadableFilm) as refusal:
        decoder.read(damage)
    assert str(refusal.value) == str(expected.value)


def test_files_and_films_above_the_pages_limits_are_refused(decoder, tmp_path):
    large = tmp_path / "film.dcm"
    with open(large, "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    for source in (str(large), bytes(MAX_FILE_BYTES + 1)):
        with pytest.raises(UnreadableFilm, match="more than the 20 MB"):
            decoder.read(source)
    with pytest.raises(UnreadableFilm, match=f"more than {MAX_PIXELS:,}"):
        decoder.read(_saved(np.zeros((8_000, 5_001), bool), "PNG"))
    assert decoder.read(_saved(np.eye(8_000, 5_000, dtype=bool), "PNG")).size == (5_000, 8_000)


def test_a_folder_is_the_disks_fault_and_names_nothing(decoder, tmp_path):
    with pytest.raises(OSError) as fault:
        decoder.read(str(tmp_path))
    assert fault.type is IsADirectoryError and fault.value.filename is None


@pytest.mark.parametrize("end", ["too slow", "killed"])
def test_a_film_that_hangs_or_kills_the_decoder_costs_one_answer(never_ending, end):
    with Decoder(processes=1, seconds=1 if end == "too slow" else 60) as decoder:
        decoder.read(FILM)
        before = _pids(decoder)
        if end == "killed":
            threading.Timer(0.3, os.kill, [before[0], signal.SIGKILL]).start()
        with pytest.raises(UnreadableFilm, match=COULD_NOT_COPE):
            decoder.read(never_ending)
        assert decoder.read(FILM).size == (50, 60)
        assert _pids(decoder) != before and not _runs(before[0])


def test_a_decoder_that_was_killed_while_idle_costs_no_answer():
    with Decoder(processes=1) as decoder:
        decoder.read(FILM)
        os.kill(_pids(decoder)[0], signal.SIGKILL)
        assert _until(lambda: not _runs(_pids(decoder)[0]))
        assert decoder.read(FILM).size == (50, 60)


def test_two_decoders_that_die_at_once_are_replaced_by_two(monkeypatch):
    class Process:
        running = True

        def __init__(self, flags):
            pass

        def end(self):
            pass

        kill = end

    class Both(list):
        """Whose append lets the other thread append too, before either goes on."""

        def append(self, process):
            super().append(process)
            both.wait()

    monkeypatch.setattr(module, "_Process", Process)
    both = threading.Barrier(2, timeout=20)
    decoder = Decoder(processes=2)
    decoder._processes = Both(decoder._processes)
    dead = [decoder._take(), decoder._take()]
    for process in dead:
        process.running = False
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(decoder._give_back, dead))
    alive = {decoder._take(), decoder._take()}
    assert len(alive) == 2 and alive == set(decoder._processes)


def test_a_film_that_needs_more_memory_than_is_given_is_refused():
    film = _saved(np.arange(4_000 * 5_000, dtype=np.uint16).reshape(4_000, 5_000), "PNG")
    with Decoder(processes=1, memory=200_000_000) as decoder:
        with pytest.raises(UnreadableFilm, match=NO_MEMORY):
            decoder.read(film)
        assert decoder.read(FILM).size == (50, 60)


def test_threads_that_ask_at_once_get_each_their_own_film(decoder):
    shades = [_saved(np.full((30, 20 + shade), shade, np.uint8), "PNG") for shade in range(60)]
    with ThreadPoolExecutor(16) as pool:
        for shade, film in enumerate(pool.map(decoder.read, shades * 3)):
            assert film.size == (20 + shade % 60, 30)
            assert film.getextrema() == (shade % 60, shade % 60)


def test_closing_ends_the_processes_and_whoever_waits_for_them(never_ending):
    decoder = Decoder(processes=1, seconds=60)
    with ThreadPoolExecutor(2) as pool:
        reading = [pool.submit(decoder.read, never_ending) for _ in range(2)]
        time.sleep(0.5)
        pids = _pids(decoder)
        decoder.close()
        kinds = {type(future.exception(timeout=20)) for future in reading}
    assert kinds == {UnreadableFilm, RuntimeError}
    assert not any(map(_runs, pids))
    with pytest.raises(RuntimeError, match="closed"):
        decoder.read(FILM)


@pytest.mark.parametrize("busy", [False, True])
def test_no_decoder_outlives_a_server_that_is_killed(never_ending, busy):
    script = f"""
import sys, threading, time
from hf_pneumonia.page.decoder import Decoder
decoder = Decoder(seconds=1)
if {busy}:
    threading.Thread(target=decoder.read, args=({never_ending!r},), daemon=True).start()
    time.sleep(0.5)
print(*(process.pid for process in decoder._processes), flush=True)
time.sleep(60)
"""
    server = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in server.stdout.readline().split()]
    assert len(pids) == 2 and all(map(_runs, pids))
    server.kill()
    server.wait()
    server.stdout.close()
    assert _until(lambda: not any(map(_runs, pids)))


def test_a_decoding_process_is_handed_no_token(monkeypatch):
    secret = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MY_SECRET_1", "AWS_SECRET_ACCESS_KEY", "api_key")
    for name in (*secret, "HARMLESS"):
        monkeypatch.setenv(name, "value")
    with Decoder(processes=1) as decoder:
        assert decoder.read(FILM).size == (50, 60)
        with open(f"/proc/{_pids(decoder)[0]}/environ", "rb") as file:
            names = {entry.partition(b"=")[0].decode() for entry in file.read().split(b"\0")}
    assert "HARMLESS" in names and not names & set(secret)


def test_an_interrupt_at_the_terminal_leaves_the_decoders_alone():
    # Ctrl-C goes to the whole process group of the terminal.
    with Decoder(processes=1) as decoder:
        decoder.read(FILM)
        assert os.getpgid(_pids(decoder)[0]) != os.getpgid(0)


def test_a_decoding_process_has_no_torch_and_no_gradio():
    script = (
        "import sys, hf_pneumonia.page.decoding_process; "
        "print(sorted({'torch', 'gradio', 'transformers', 'starlette'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
