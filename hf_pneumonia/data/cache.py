"""The film store: every film decoded once to a square of uint8, and kept on disk.

Beside the squares lies what can be told of a film only at its full size, and which films are alike. Knows
nothing about labels or splits: row i of the store is row i of the table it was built from.
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
from hf_pneumonia.data.film import INTERPOLATION, UnreadableFilm, read_file, read_film, squash
from hf_pneumonia.data.overlays import colour_share, text_rows
from hf_pneumonia.data.store_folder import complete
from hf_pneumonia.errors import UsageError

logger = logging.getLogger(__name__)

# Part of every key; raise it when the same file decodes to other pixels, so that no stale store is read.
_FORMAT = 9

APPEARANCE_SIDE = 224  # of the square that the appearance is measured on, in pixels

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
    """Folder of the decoded, unpacked and simulated films where none is named."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "hf-pneumonia"


class StoreCutShort(UsageError):
    """The films of an open store are not all there any more."""


class FilmStore:
    """Films on disk, read when they are asked for: memory does not grow with their number, nor with how many
    were read (the pages of a memory map would count as this process's own).

    Attributes:
        folder: where it lies, unless it was deleted meanwhile: it can be read all the same.
        size: side of the films in pixels.
        facts: (n,) structured: `sha256` of the file's bytes, `width` and `height` in pixels, `text_rows`,
            `colour_share` and `hues` (`hue_spread`) as in overlays.py, and whether a film is `blank`, of one
            gray, and its `appearance` (`measure_appearance`); zero but for the hash where a film is
            unreadable.
        unreadable: row -> reason, of the films that could not be decoded; their squares are all zero.
    """

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        self.folder, self.size = folder, index["size"]
        self.facts = np.load(folder / "facts.npy", allow_pickle=False)
        self.unreadable = {int(row): reason for row, reason in index["unreadable"].items()}
        with np.load(folder / "copies.npz", allow_pickle=False) as found:
            self._copies = found["pairs"], found["correlation"]
        self._films, self._lock = open(folder / "films.uint8", "rb", buffering=0), threading.Lock()
        weakref.finalize(self, self._films.close)

    def __len__(self) -> int:
        return len(self.facts)

    def __getitem__(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """(k, size, size) uint8, the films of the given rows.

        Raises:
            StoreCutShort: it was, on the disk.
        """
        rows = np.asarray(rows if len(rows) else np.empty(0, np.int64))
        rows = np.arange(len(self))[rows]  # as an array is indexed: from the end, by masks ...
        films = np.empty((len(rows), self.size, self.size), np.uint8)
        for row, film in zip(rows.tolist(), films, strict=True):
            data = self._read(row * film.nbytes, film.nbytes)
            if len(data) != film.nbytes:
                raise StoreCutShort(f"the film store {self.folder} was cut short: delete it")
            film[:] = np.frombuffer(data, np.uint8).reshape(film.shape)
        return films

    def __reduce__(self) -> tuple:
        return FilmStore, (self.folder,)  # an open file can't be sent to another process

    def _read(self, start: int, count: int) -> bytes:
        """By any number of threads and forked processes at a time."""
        if hasattr(os, "pread"):
            return os.pread(self._films.fileno(), count, start)
        with self._lock:  # Windows, which forks nothing
            self._films.seek(start)
            return self._films.read(count)

    def copies(self) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of films that are alike, as `find_copies` gives them."""
        return self._copies


def open_store(images: Sequence[dict], size: int, cache_dir: Path) -> FilmStore:
    """Open the store of these images at this size, building it first where there is none.

    Args:
        images: the undecoded `image` column: {"path", "bytes"} of each film.
        size: side of the stored square in pixels.
        cache_dir: stores lie in its folder `films`, one folder per key. The key is made of each film's path,
            size and times of change (of its bytes, where it has no path): a changed file makes a new store.

    Raises:
        UsageError: films changed while they were decoded.
        OSError: the cache can't be written, or the disk is full.
    """
    key = _key(images, size)
    folder = cache_dir / "films" / key

    def build(aside: Path) -> None:
        _build(images, size, aside)
        if _key(images, size) != key:
            raise UsageError("films changed or went away while they were decoded: start again when they rest")

    complete(folder, build)
    return FilmStore(folder)


def _key(images: Sequence[dict], size: int) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {VERSION} {size} {INTERPOLATION} {len(images)}".encode())
    for image in images:
        if image["bytes"] is not None:
            digest.update(hashlib.sha256(image["bytes"]).digest())
            continue
        try:
            status = os.stat(image["path"])
            # ctime too: what replaces a file may have its size (DICOM films do) and its mtime (rsync, unzip).
            stamp = f"{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}"
            digest.update(f"{image['path']}\0{stamp}\n".encode())
        except (OSError, ValueError):  # ValueError: a zero byte in the name, of a table say
            digest.update(f"{image['path']}\0missing\n".encode())
    return digest.hexdigest()[:24]


def _build(images: Sequence[dict], size: int, folder: Path) -> None:
    def decode(row: int) -> tuple[np.ndarray, np.ndarray, tuple] | tuple[str, None, tuple]:
        image = images[row]
        return _decode(image["path"] if image["bytes"] is None else image["bytes"], size)

    unreadable: dict[int, str] = {}
    facts = np.zeros(len(images), _FACTS)
    threads = available_cores()
    # Threads, since Pillow decodes and resizes without holding Python's lock. Written to the files and not
    # through a map: a full disk is then an OSError, and not a killed process. Thumbnails are wanted once.
    with open(folder / "films.uint8", "wb") as films, tempfile.TemporaryFile(dir=folder) as thumbnails:
        decoded = work_ahead(decode, range(len(images)), threads, 8 * threads)
        for row, (film, thumbnail, fact) in enumerate(
            tqdm(decoded, "decoding films", len(images), unit=" films", disable=None)
        ):
            if isinstance(film, str):
                unreadable[row] = film
                film, thumbnail = np.zeros((size, size), np.uint8), np.zeros((THUMBNAIL, THUMBNAIL), np.uint8)
            films.write(film.tobytes())
            thumbnails.write(thumbnail.tobytes())
            facts[row] = fact
        thumbnails.flush()
        logger.info("looking for copies among %d films", len(images))
        shape = (len(images), THUMBNAIL, THUMBNAIL)
        pairs, correlation = find_copies(np.memmap(thumbnails, np.uint8, "r", shape=shape))
    np.savez(folder / "copies.npz", pairs=pairs, correlation=correlation)
    np.save(folder / "facts.npy", facts)
    index = {"films": len(images), "size": size, "unreadable": unreadable}
    (folder / "index.json").write_text(json.dumps(index))


def _decode(source: str | bytes, size: int) -> tuple[np.ndarray | str, np.ndarray | None, tuple]:
    """Square, thumbnail and facts of one film; the reason in the square's place where it is unreadable."""
    try:
        data = source if isinstance(source, bytes) else read_file(source)
        film = read_film(data)
    except UnreadableFilm as error:
        return str(error), None, (_sha256(source), 0, 0, 0, 0.0, 0.0, False, 0.0)
    square = squash(film, size)
    thumbnail = _thumbnail(film, square)
    hues, blank = film.info.get("hues", 0.0), thumbnail.std() <= 1
    # At one size whatever is trained at: a shifted split, which goes by it, must not depend on that.
    seen = square if size == APPEARANCE_SIDE else squash(film, APPEARANCE_SIDE)
    told = (text_rows(film), colour_share(data), hues, blank, measure_appearance(seen, *film.size))
    return square, thumbnail, (_sha256(data), *film.size, *told)


def _thumbnail(film: Image.Image, square: np.ndarray) -> np.ndarray:
    """(THUMBNAIL, THUMBNAIL) uint8, of the square where that is fine enough: a tenth of the time."""
    fine = len(square) >= 2 * THUMBNAIL
    return squash(Image.fromarray(square) if fine else film, THUMBNAIL)


def _sha256(source: str | bytes) -> str:
    """Of a file's bytes; "" where they can't be had, which `read_film` says better."""
    digest = hashlib.sha256()
    if isinstance(source, bytes):
        digest.update(source)
        return digest.hexdigest()
    try:
        with open(source, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except (OSError, ValueError):
        return ""
    return digest.hexdigest()
