"""Image cache on disk: every image decoded once to a square of uint8.

It also holds facts that need the image's full size, and the pairs of similar images. Row i of the cache is
row i of the table that it was built from; labels and splits are not in it.
"""

import hashlib
import json
import logging
import os
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from hf_pneumonia.data.appearance import STATISTICS, measure_appearance
from hf_pneumonia.data.cores import available_cores, map_in_threads
from hf_pneumonia.data.duplicates import THUMBNAIL, VERSION, find_copies
from hf_pneumonia.data.files import build_once
from hf_pneumonia.data.images import INTERPOLATION, UnreadableImage, few_grays, read_file, read_image, squash
from hf_pneumonia.data.overlays import colour_share, text_rows
from hf_pneumonia.errors import UsageError

logger = logging.getLogger(__name__)

# Part of every key. Raise it when the same file decodes to other pixels or facts.
_FORMAT = 10

# Appearance and duplicates are measured on a square of this side (pixels), so that a split does not depend on
# the training size.
_FACTS_SIDE = 224

_FACTS = np.dtype(
    [
        ("sha256", "S64"),
        ("width", "i4"),
        ("height", "i4"),
        ("text_rows", "i4"),
        ("colour_share", "f4"),
        ("hues", "f4"),
        ("blank", "?"),
        ("appearance", "f8", (len(STATISTICS),)),
    ]
)


def default_cache() -> Path:
    """Return the default folder of decoded, unpacked and simulated images."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hf-pneumonia"


class TruncatedCache(UsageError):
    """The file of an open image cache is shorter than it was."""

    # One argument, as a DataLoader needs to raise it again in the main process.
    def __init__(self, message: str) -> None:
        super().__init__("cache-cut-short", message)


class ImageCache:
    """Decoded images on disk, read on demand.

    Memory grows neither with the number of images nor with the number read (a memory map would count towards
    the memory of this process). An open cache can still be read after its folder was deleted.

    Attributes:
        folder: folder of the cache.
        size: side of the images in pixels.
        facts: (n,) structured: `sha256` of the file's bytes ("" if missing, empty or too large), `width` and
            `height` in pixels, `text_rows`, `colour_share` and `hues` as in overlays.py, `blank` (one gray)
            and `appearance`. All but the hash are zero where the image is unreadable.
        unreadable: reason by row, of images that could not be decoded; their squares are all zero.
    """

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        self.folder, self.size = folder, index["size"]
        self.facts = np.load(folder / "facts.npy", allow_pickle=False)
        self.unreadable = {int(row): reason for row, reason in index["unreadable"].items()}
        with np.load(folder / "copies.npz", allow_pickle=False) as copies:
            self._copies = copies["pairs"], copies["correlation"]
        self._images, self._lock = open(folder / "images.uint8", "rb", buffering=0), threading.Lock()
        weakref.finalize(self, self._images.close)

    def __len__(self) -> int:
        return len(self.facts)

    def __getitem__(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read the images of the given rows: (k, size, size) uint8.

        Raises:
            TruncatedCache: the file was cut short on the disk.
        """
        rows = np.asarray(rows if len(rows) else np.empty(0, np.int64))
        rows = np.arange(len(self))[rows]  # index like an array: negative rows, masks ...
        images = np.empty((len(rows), self.size, self.size), np.uint8)
        for row, image in zip(rows.tolist(), images, strict=True):
            data = self._read(row * image.nbytes, image.nbytes)
            if len(data) != image.nbytes:
                raise TruncatedCache(f"{self.folder}: expected a full image cache, got a part. Delete it")
            image[:] = np.frombuffer(data, np.uint8).reshape(image.shape)
        return images

    def __reduce__(self) -> tuple:
        return ImageCache, (self.folder,)  # an open file can't be pickled

    def _read(self, start: int, count: int) -> bytes:
        """Read bytes; safe with any number of threads and forked processes."""
        if hasattr(os, "pread"):
            return os.pread(self._images.fileno(), count, start)
        with self._lock:  # Windows, which does not fork
            self._images.seek(start)
            return self._images.read(count)

    def similar_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs of similar images and their correlations, as `find_copies`."""
        return self._copies


def open_cache(images: Sequence[dict], size: int, cache_dir: Path) -> ImageCache:
    """Open the cache of these images ({"path", "bytes"} each), and build it first if there is none.

    Each cache has a folder in `cache_dir`/images, named by a hash of the size and of each file's path, size
    and times of change (or its bytes, if given): a changed file makes a new cache.

    Raises:
        UsageError: files changed while they were decoded.
        OSError: the cache can't be written, or the disk is full.
    """
    key = _key(images, size)
    folder = cache_dir / "images" / key

    def build(aside: Path) -> None:
        _build(images, size, aside)
        if _key(images, size) != key:
            raise UsageError(
                "images-changed",
                "images: expected no change during decoding, got changed or missing files. Start again when "
                "no program writes to them",
            )

    build_once(folder, build, sealed=True)
    return ImageCache(folder)


def _key(images: Sequence[dict], size: int) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {VERSION} {size} {INTERPOLATION} {len(images)}".encode())
    for image in images:
        if image["bytes"] is not None:
            digest.update(hashlib.sha256(image["bytes"]).digest())
            continue
        try:
            status = os.stat(image["path"])
            # ctime too: a new file may have the old one's size (DICOM) and mtime (rsync, unzip).
            stamp = f"{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}"
            digest.update(f"{image['path']}\0{stamp}\n".encode())
        except (OSError, ValueError):  # ValueError: a zero byte in the name
            digest.update(f"{image['path']}\0missing\n".encode())
    return digest.hexdigest()[:24]


def _build(images: Sequence[dict], size: int, folder: Path) -> None:
    def decode(row: int) -> tuple[np.ndarray, np.ndarray, tuple] | tuple[str, None, tuple]:
        image = images[row]
        return _decode(image["path"] if image["bytes"] is None else image["bytes"], size)

    unreadable: dict[int, str] = {}
    facts = np.zeros(len(images), _FACTS)
    threads = available_cores()
    # Threads, because Pillow decodes and resizes without the GIL. Files and no memory map, where a full disk
    # would kill the process instead of raising OSError.
    with open(folder / "images.uint8", "wb") as squares, tempfile.TemporaryFile(dir=folder) as thumbnails:
        decoded = map_in_threads(decode, range(len(images)), threads, 8 * threads)
        progress = tqdm(decoded, "decoding images", len(images), unit=" images", disable=None)
        for row, (square, thumbnail, fact) in enumerate(progress):
            if isinstance(square, str):
                unreadable[row] = square
                square = np.zeros((size, size), np.uint8)
                thumbnail = np.zeros((THUMBNAIL, THUMBNAIL), np.uint8)
            squares.write(square.tobytes())
            thumbnails.write(thumbnail.tobytes())
            facts[row] = fact
        thumbnails.flush()
        logger.info("looking for duplicates among %d images", len(images))
        shape = (len(images), THUMBNAIL, THUMBNAIL)
        pairs, correlation = find_copies(np.memmap(thumbnails, np.uint8, "r", shape=shape))
    np.savez(folder / "copies.npz", pairs=pairs, correlation=correlation)
    np.save(folder / "facts.npy", facts)
    index = {"size": size, "unreadable": unreadable}
    (folder / "index.json").write_text(json.dumps(index))


def _decode(source: str | bytes, size: int) -> tuple[np.ndarray | str, np.ndarray | None, tuple]:
    """Return square, thumbnail and facts of one image; in place of the square the reason if unreadable."""
    data = b""
    try:
        data = source if isinstance(source, bytes) else read_file(source)
        image = read_image(data)
        if few_grays(image):
            raise UnreadableImage("only two or three gray levels: a mask, not an X-ray")
    except UnreadableImage as error:
        digest = hashlib.sha256(data).hexdigest() if data else ""
        return str(error), None, (digest, 0, 0, 0, 0.0, 0.0, False, 0.0)
    square = squash(image, size)
    large = square if size == _FACTS_SIDE else squash(image, _FACTS_SIDE)
    thumbnail = squash(Image.fromarray(large), THUMBNAIL)
    hues, blank = image.info.get("hues", 0.0), thumbnail.std() <= 1
    facts = (text_rows(image), colour_share(data), hues, blank, measure_appearance(large, *image.size))
    return square, thumbnail, (hashlib.sha256(data).hexdigest(), *image.size, *facts)
