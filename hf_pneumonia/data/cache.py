"""The film store: every film decoded once to a square of uint8, kept on disk and memory-mapped.

Knows nothing about labels or splits: row i of the store is row i of the table that it was built from.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from hf_pneumonia.data.film import INTERPOLATION, UnreadableFilm, film_array

# Part of every key; raise it when the same file decodes to other pixels, so that no stale store is read.
_FORMAT = 1


def available_cores() -> int:
    """Cores that this process may use, which in a container or under Slurm are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class FilmStore:
    """Films as a read-only memory map; only the pages of the rows that are asked for are ever in memory.

    Attributes:
        films: (n, size, size) uint8 memory map; an unreadable film is all zero.
        unreadable: row -> reason, of the films that could not be decoded.
    """

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        self.films = np.memmap(folder / "films.uint8", dtype=np.uint8, mode="r", shape=tuple(index["shape"]))
        self.unreadable = {int(row): reason for row, reason in index["unreadable"].items()}

    def __len__(self) -> int:
        return len(self.films)

    def __getitem__(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """(k, size, size) uint8 copy of the given rows."""
        return self.films[np.asarray(rows)]

    @property
    def size(self) -> int:
        """Side of the films in pixels."""
        return self.films.shape[1]


def open_store(images: Sequence[dict], size: int, cache_dir: Path) -> FilmStore:
    """Open the store of these images at this size, building it first where there is none.

    Args:
        images: the undecoded `image` column: {"path", "bytes"} of each film.
        size: side of the stored square in pixels.
        cache_dir: stores lie in its folder `films`, one folder per key. The key is made of each film's path,
            size and time of change (of its bytes, where it has no path), so a changed file makes a new store.
    """
    folder = cache_dir / "films" / _key(images, size)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Built aside and renamed when whole: a store that exists is complete.
        aside = Path(tempfile.mkdtemp(prefix="building-", dir=folder.parent))
        try:
            _build(images, size, aside)
            aside.chmod(0o755)  # mkdtemp makes it private
            _publish(aside, folder)
        except OSError as error:
            error.filename = error.filename or str(folder.parent)  # a full disk does not say which
            raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return FilmStore(folder)


def _key(images: Sequence[dict], size: int) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {size} {INTERPOLATION} {len(images)}".encode())
    for image in images:
        if image["bytes"] is not None:
            digest.update(hashlib.sha256(image["bytes"]).digest())
            continue
        try:
            status = os.stat(image["path"])
            digest.update(f"{image['path']}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{image['path']}\0missing\n".encode())
    return digest.hexdigest()[:24]


def _build(images: Sequence[dict], size: int, folder: Path) -> None:
    def decode(row: int) -> np.ndarray | str:
        image = images[row]
        try:
            return film_array(image["path"] if image["bytes"] is None else image["bytes"], size)
        except UnreadableFilm as error:
            return str(error)

    unreadable: dict[int, str] = {}
    # Threads, since Pillow decodes and resizes without holding Python's lock. Written to the file and not
    # through a map: a full disk is then an OSError, and not a killed process.
    with ThreadPoolExecutor(available_cores()) as pool, open(folder / "films.uint8", "wb") as file:
        decoded = pool.map(decode, range(len(images)))
        for row, film in enumerate(tqdm(decoded, "decoding films", len(images), unit=" films", disable=None)):
            if isinstance(film, str):
                unreadable[row] = film
                film = np.zeros((size, size), np.uint8)
            file.write(film.tobytes())
        file.flush()
        os.fsync(file.fileno())
    (folder / "index.json").write_text(
        json.dumps({"shape": [len(images), size, size], "unreadable": unreadable})
    )


def _publish(aside: Path, folder: Path) -> None:
    try:
        os.rename(aside, folder)
    except OSError:
        # Another process built the same store meanwhile; anything else is a real failure.
        if not folder.exists():
            raise
