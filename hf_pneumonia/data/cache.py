"""The film store: every film decoded once to a square of uint8, kept on disk and memory-mapped.

Beside the squares lie a thumbnail of each film, what can be told of it only at its full size, and which films
are alike. Knows nothing about labels or splits: row i of the store is row i of the table it was built from.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from hf_pneumonia.data.duplicates import THUMBNAIL, VERSION, find_copies
from hf_pneumonia.data.film import INTERPOLATION, UnreadableFilm, read_film, squash
from hf_pneumonia.data.overlays import colour_share, text_rows

logger = logging.getLogger(__name__)

# Part of every key; raise it when the same file decodes to other pixels, so that no stale store is read.
_FORMAT = 3

_FACTS = np.dtype(
    [
        ("sha256", "S64"),
        ("width", "i4"),
        ("height", "i4"),
        ("text_rows", "i4"),
        ("colour_share", "f4"),
        ("hues", "f4"),
    ]
)


def available_cores() -> int:
    """Cores that this process may use, which in a container or under Slurm are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_cache() -> Path:
    """Folder of the decoded, unpacked and simulated films where none is named."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "hf-pneumonia"


class FilmStore:
    """Films as a read-only memory map; only the pages of the rows that are asked for are ever in memory.

    Attributes:
        films: (n, size, size) uint8 memory map; an unreadable film is all zero.
        thumbnails: (n, THUMBNAIL, THUMBNAIL) uint8 memory map, made from the films at their full size.
        facts: (n,) structured: `sha256` of the file's bytes, `width` and `height` in pixels, and `text_rows`,
            `colour_share` and `hues` (`hue_spread`) as in overlays.py; zero but for the hash where a film is
            unreadable.
        unreadable: row -> reason, of the films that could not be decoded.
    """

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        n, size = index["films"], index["size"]
        self.films = np.memmap(folder / "films.uint8", dtype=np.uint8, mode="r", shape=(n, size, size))
        self.thumbnails = np.memmap(
            folder / "thumbnails.uint8", dtype=np.uint8, mode="r", shape=(n, THUMBNAIL, THUMBNAIL)
        )
        self.facts = np.load(folder / "facts.npy")
        self._folder = folder
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

    def copies(self) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of films that are alike, as `find_copies` gives them; sought once and kept in the store."""
        file = self._folder / f"copies-v{VERSION}.npz"
        if not file.exists():
            logger.info("looking for copies among %d films", len(self))
            pairs, correlation = find_copies(self.thumbnails)
            aside = file.with_name(f".{os.getpid()}-{file.name}")
            np.savez(aside, pairs=pairs, correlation=correlation)
            aside.replace(file)
        with np.load(file) as found:
            return found["pairs"], found["correlation"]


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
    def decode(row: int) -> tuple[np.ndarray, np.ndarray, np.void] | tuple[str, str]:
        image = images[row]
        return _decode(image["path"] if image["bytes"] is None else image["bytes"], size)

    unreadable: dict[int, str] = {}
    facts = np.zeros(len(images), _FACTS)
    # Threads, since Pillow decodes and resizes without holding Python's lock. Written to the files and not
    # through a map: a full disk is then an OSError, and not a killed process.
    with (
        ThreadPoolExecutor(available_cores()) as pool,
        open(folder / "films.uint8", "wb") as films,
        open(folder / "thumbnails.uint8", "wb") as thumbnails,
    ):
        decoded = pool.map(decode, range(len(images)))
        for row, (film, thumbnail, fact) in enumerate(
            tqdm(decoded, "decoding films", len(images), unit=" films", disable=None)
        ):
            if isinstance(film, str):
                unreadable[row] = film
                film, thumbnail = np.zeros((size, size), np.uint8), np.zeros((THUMBNAIL, THUMBNAIL), np.uint8)
            films.write(film.tobytes())
            thumbnails.write(thumbnail.tobytes())
            facts[row] = fact
        for file in (films, thumbnails):
            file.flush()
            os.fsync(file.fileno())
    np.save(folder / "facts.npy", facts)
    index = {"films": len(images), "size": size, "unreadable": unreadable}
    (folder / "index.json").write_text(json.dumps(index))


def _decode(source: str | bytes, size: int) -> tuple[np.ndarray | str, np.ndarray | None, tuple]:
    """Square, thumbnail and facts of one film; the reason in the square's place where it is unreadable."""
    try:
        film = read_film(source)
    except UnreadableFilm as error:
        return str(error), None, (_sha256(source), 0, 0, 0, 0.0, 0.0)
    hues = film.info.get("hues", 0.0)
    facts = (_sha256(source), *film.size, text_rows(film), colour_share(source), hues)
    # Reduced by whole numbers first: near enough for a thumbnail, and five times as quick on a large film.
    thumbnail = film.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return squash(film, size), np.asarray(thumbnail), facts


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
    except OSError:
        return ""
    return digest.hexdigest()


def _publish(aside: Path, folder: Path) -> None:
    try:
        os.rename(aside, folder)
    except OSError:
        # Another process built the same store meanwhile; anything else is a real failure.
        if not folder.exists():
            raise
