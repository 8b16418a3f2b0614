"""The image cache: every image decoded once to a square of uint8, and kept on disk.

Beside the squares it keeps what only the full size tells of an image, and which images are alike. Row i of
the cache is row i of the table it was built from; labels and splits are not in it.
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
from hf_pneumonia.data.cores import available_cores, work_ahead
from hf_pneumonia.data.duplicates import THUMBNAIL, VERSION, find_copies
from hf_pneumonia.data.files import build_once
from hf_pneumonia.data.images import INTERPOLATION, UnreadableImage, few_grays, read_file, read_image, squash
from hf_pneumonia.data.overlays import colour_share, text_rows
from hf_pneumonia.errors import UsageError

logger = logging.getLogger(__name__)

# Part of every key; raise it when the same file decodes to other pixels.
_FORMAT = 9

_APPEARANCE_SIDE = 224  # of the square that the appearance is measured on, in pixels

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
    """Default folder of decoded, unpacked and simulated images."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "hf-pneumonia"


class CacheCutShort(UsageError):
    """The file of an open cache is shorter than it was."""


class ImageCache:
    """Images on disk, read when they are asked for: memory does not grow with their number, nor with how many
    were read (the pages of a memory map would count as this process's own). If the folder is deleted
    meanwhile, an open cache can still be read.

    Attributes:
        folder, size: where it is, and the side of its images in pixels.
        facts: (n,) structured: `sha256` of the file's bytes, `width` and `height` in pixels, `text_rows`,
            `colour_share` and `hues` as in overlays.py, `blank` (one gray) and `appearance`. All but the
            hash are zero where the image is unreadable.
        unreadable: row -> reason, of images that could not be decoded; their squares are all zero.
    """

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        self.folder, self.size = folder, index["size"]
        self.facts = np.load(folder / "facts.npy", allow_pickle=False)
        self.unreadable = {int(row): reason for row, reason in index["unreadable"].items()}
        with np.load(folder / "copies.npz", allow_pickle=False) as found:
            self._copies = found["pairs"], found["correlation"]
        self._images, self._lock = open(folder / "images.uint8", "rb", buffering=0), threading.Lock()
        weakref.finalize(self, self._images.close)

    def __len__(self) -> int:
        return len(self.facts)

    def __getitem__(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read the images of the given rows: (k, size, size) uint8.

        Raises:
            CacheCutShort: the file was cut short on the disk.
        """
        rows = np.asarray(rows if len(rows) else np.empty(0, np.int64))
        rows = np.arange(len(self))[rows]  # as an array is indexed: from the end, by masks ...
        images = np.empty((len(rows), self.size, self.size), np.uint8)
        for row, image in zip(rows.tolist(), images, strict=True):
            data = self._read(row * image.nbytes, image.nbytes)
            if len(data) != image.nbytes:
                raise CacheCutShort(f"the image cache {self.folder} was cut short: delete it")
            image[:] = np.frombuffer(data, np.uint8).reshape(image.shape)
        return images

    def __reduce__(self) -> tuple:
        return ImageCache, (self.folder,)  # an open file can't be sent to another process

    def _read(self, start: int, count: int) -> bytes:
        """Safe for any number of threads and forked processes."""
        if hasattr(os, "pread"):
            return os.pread(self._images.fileno(), count, start)
        with self._lock:  # Windows, which forks nothing
            self._images.seek(start)
            return self._images.read(count)

    def copies(self) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of images that are alike, as `find_copies` gives them."""
        return self._copies


def open_cache(images: Sequence[dict], size: int, cache_dir: Path) -> ImageCache:
    """Open the cache of these images ({"path", "bytes"} each), building it first where there is none.

    Stores are in the folder `images` of `cache_dir`, one folder per key. The key is made of the size and each
    file's path, size and times of change (or its bytes, if given): a changed file makes a new cache.

    Raises:
        UsageError: files changed while they were decoded.
        OSError: the cache can't be written, or the disk is full.
    """
    key = _key(images, size)
    folder = cache_dir / "films" / key

    def build(aside: Path) -> None:
        _build(images, size, aside)
        if _key(images, size) != key:
            raise UsageError(
                "build", "images changed or went away while they were decoded: start again when they rest"
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
    # Pillow decodes and resizes without holding Python's lock. Written to files and not through a memory map:
    # a full disk is then an OSError, and not a killed process.
    with open(folder / "images.uint8", "wb") as images, tempfile.TemporaryFile(dir=folder) as thumbnails:
        decoded = work_ahead(decode, range(len(images)), threads, 8 * threads)
        for row, (image, thumbnail, fact) in enumerate(
            tqdm(decoded, "decoding images", len(images), unit=" images", disable=None)
        ):
            if isinstance(image, str):
                unreadable[row] = image
                image, thumbnail = (
                    np.zeros((size, size), np.uint8),
                    np.zeros((THUMBNAIL, THUMBNAIL), np.uint8),
                )
            images.write(image.tobytes())
            thumbnails.write(thumbnail.tobytes())
            facts[row] = fact
        thumbnails.flush()
        logger.info("looking for copies among %d images", len(images))
        shape = (len(images), THUMBNAIL, THUMBNAIL)
        pairs, correlation = find_copies(np.memmap(thumbnails, np.uint8, "r", shape=shape))
    np.savez(folder / "copies.npz", pairs=pairs, correlation=correlation)
    np.save(folder / "facts.npy", facts)
    index = {"films": len(images), "size": size, "unreadable": unreadable}
    (folder / "index.json").write_text(json.dumps(index))


def _decode(source: str | bytes, size: int) -> tuple[np.ndarray | str, np.ndarray | None, tuple]:
    """Square, thumbnail and facts of one image; the reason in place of the square where it is unreadable."""
    try:
        data = source if isinstance(source, bytes) else read_file(source)
        image = read_image(data)
        if few_grays(image):
            raise UnreadableImage("two or three grays, such as a mask has: not a radiograph")
    except UnreadableImage as error:
        return str(error), None, (_sha256(source), 0, 0, 0, 0.0, 0.0, False, 0.0)
    square = squash(image, size)
    # Of the square where that is fine enough: a tenth of the time.
    thumbnail = squash(Image.fromarray(square) if size >= 2 * THUMBNAIL else image, THUMBNAIL)
    hues, blank = image.info.get("hues", 0.0), thumbnail.std() <= 1
    # At one size for every training size: a shifted split goes by it.
    seen = square if size == _APPEARANCE_SIDE else squash(image, _APPEARANCE_SIDE)
    told = (text_rows(image), colour_share(data), hues, blank, measure_appearance(seen, *image.size))
    return square, thumbnail, (hashlib.sha256(data).hexdigest(), *image.size, *told)


def _sha256(source: str | bytes) -> str:
    """SHA-256 of an unreadable file, which may be too large to be read at once; "" where there is none."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    digest = hashlib.sha256()
    try:
        with open(source, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except (OSError, ValueError):
        return ""
    return digest.hexdigest()
