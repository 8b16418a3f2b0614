import io
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ROOT, until
from PIL import Image
from test_inputs import DICOM

from hf_pneumonia.data.images import read_image
from hf_pneumonia.errors import UnreadableImage
from hf_pneumonia.page.decoder import DECODER_FAILED, NO_MEMORY, Decoder
from hf_pneumonia.page.limits import MAX_PIXELS

SLOPE = np.arange(60 * 50, dtype=np.uint16).reshape(60, 50)


def _saved(pixels: np.ndarray, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def decoder():
    with Decoder() as decoder:
        yield decoder


IMAGE = _saved((SLOPE // 12).astype(np.uint8), "PNG")
IMAGES = {
    "JPEG": _saved((SLOPE // 12).astype(np.uint8), "JPEG"),
    "PNG of 16 bits": _saved(SLOPE, "PNG"),
    "colour PNG": _saved(np.stack([SLOPE // 12] * 3, -1).astype(np.uint8), "PNG"),
    "DICOM": DICOM,
}


def _children() -> set[int]:
    """Process ids of the open decoders."""
    return {child.pid for child in multiprocessing.active_children()}


def _runs(pid: int) -> bool:
    """Whether a process, which need not be a child of this one, still runs."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second if it ends during the read
        return False


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_is_the_one_that_read_image_gives(decoder, tmp_path, kind):
    path, expected = tmp_path / "Röntgen ☢.image", read_image(IMAGES[kind])
    path.write_bytes(IMAGES[kind])
    for image in map(decoder.read, (IMAGES[kind], str(path))):
        assert image == expected  # by mode and pixels
        for name in {"hues", "modality"} & expected.info.keys():
            assert image.info[name] == expected.info[name]


@pytest.mark.parametrize("damage", [b"", b"<html>", IMAGE[:-40], "/no/such/image"])
def test_an_unreadable_file_gets_the_same_reason_as_from_read_image(decoder, damage):
    reasons = []
    for read in (read_image, decoder.read):
        with pytest.raises(UnreadableImage) as refusal:
            read(damage)
        reasons.append(str(refusal.value))
    assert reasons[0] == reasons[1]


def test_an_image_above_the_pages_limit_of_pixels_is_refused(decoder):
    with pytest.raises(UnreadableImage, match=f"more than {MAX_PIXELS:,}"):
        decoder.read(_saved(np.zeros((8_000, 5_001), bool), "PNG"))


@pytest.mark.parametrize("end", ["too slow", "killed"])
def test_an_image_that_hangs_or_kills_the_decoder_costs_one_answer(tmp_path, end):
    os.mkfifo(tmp_path / "image.png")  # reading it never ends
    before = _children()
    with Decoder(processes=1, seconds=1 if end == "too slow" else 60) as decoder:
        decoder.read(IMAGE)
        (pid,) = _children() - before
        if end == "killed":
            threading.Timer(0.3, os.kill, [pid, signal.SIGKILL]).start()
        with pytest.raises(UnreadableImage, match=DECODER_FAILED):
            decoder.read(str(tmp_path / "image.png"))
        assert decoder.read(IMAGE).size == (50, 60)
        assert not _runs(pid)
    assert _children() <= before


def test_too_little_memory_is_a_reason():
    with Decoder(processes=1, memory=100_000_000) as decoder:
        with pytest.raises(UnreadableImage, match=NO_MEMORY):
            decoder.read(_saved(np.zeros((4_000, 5_000), np.uint16), "PNG"))
        assert decoder.read(IMAGE).size == (50, 60)


def test_concurrent_threads_each_get_their_own_image(decoder):
    shades = [_saved(np.full((30, 20 + shade), shade, np.uint8), "PNG") for shade in range(60)]
    with ThreadPoolExecutor(16) as pool:
        for shade, image in enumerate(pool.map(decoder.read, shades)):
            assert image.size == (20 + shade, 30) and image.getextrema() == (shade, shade)


def test_a_decoder_process_imports_neither_torch_nor_gradio_and_ends_with_a_killed_server():
    script = """
import multiprocessing, sys, time
import app, hf_pneumonia.page.decoder
decoder = hf_pneumonia.page.decoder.Decoder()
print(*({"torch", "gradio", "transformers", "starlette"} & set(sys.modules)))
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(60)
"""
    server = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert server.stdout.readline() == "\n"
    pids = [int(pid) for pid in server.stdout.readline().split()]
    assert len(pids) == 2 and all(map(_runs, pids))
    server.kill()
    server.wait()
    server.stdout.close()
    assert until(lambda: not any(map(_runs, pids)))
