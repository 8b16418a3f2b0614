"""File types, atomic writes of files and folders, and safe reading of YAML and JSON."""

import errno
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

# Copied from datasets' `imagefolder`, whose import takes half a second.
IMAGE_ENDINGS = frozenset(
    (
        ".apng .blp .bmp .bufr .bw .cur .dcx .dds .dib .emf .eps .fit .fits .flc .fli .ftc .ftu .gbr "
        ".gif .grib .icb .icns .ico .iim .im .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx "
        ".mpeg .mpg .msp .pbm .pcd .pcx .pgm .png .pnm .ppm .ps .psd .pxr .ras .rgb .rgba .sgi .tga "
        ".tif .tiff .vda .vst .webp .wmf .xbm .xpm"
    ).split()
)
DICOM_ENDINGS = frozenset({".dcm", ".dicom"})

IMAGE, DICOM, UNNAMED = "image", "dicom", "unnamed"

# First bytes of JPEG, PNG, TIFF, BMP, GIF, WebP, JPEG 2000 and PGM.
_IMAGE_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"II*\0", b"MM\0*", b"BM", b"GIF8", b"RIFF")
_IMAGE_BEGINNINGS += (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"P5")

_SEAL = "whole.json"  # size and checksum of each file of a folder; written last
_CHECKSUM_LIMIT = 64 * 2**20  # bytes; of larger files only the size is compared
_ASIDE = ".building-"  # prefix of the name of an incomplete folder


def kind_of(path: Path) -> str | None:
    """Return IMAGE, DICOM or None by a file's extension, or by its first bytes where it has none."""
    kind = kind_by_name(path.name)
    if kind != UNNAMED:
        return kind
    if not path.is_file():  # a broken link, or a pipe, which would block
        return None
    try:
        with open(path, "rb") as file:
            return kind_by_beginning(file.read(132))
    except OSError:
        return None


def kind_by_name(name: str) -> str | None:
    """Return IMAGE, DICOM or None by a file's name, or UNNAMED if its first bytes have to decide."""
    ending = os.path.splitext(name)[1].lower()
    if ending in IMAGE_ENDINGS:
        return IMAGE
    if ending in DICOM_ENDINGS:
        return DICOM
    # 1.2.840.10008, a DICOM UID, has no extension either.
    return UNNAMED if not ending or ending[1:].isdigit() else None


def kind_by_beginning(first: bytes) -> str | None:
    """Return IMAGE, DICOM or None by a file's first 132 bytes."""
    if first[128:132] == b"DICM":
        return DICOM
    return IMAGE if first.startswith(_IMAGE_BEGINNINGS) else None


def walk(
    root: Path, on_error: Callable[[OSError], None] | None = None, above: frozenset[str] = frozenset()
) -> Iterator[tuple[Path, list[str]]]:
    """Yield `root` and every folder below it, with the names of its files; skip hidden files and folders.

    Links to folders are followed, except links to a parent folder.

    Args:
        root: the folder.
        on_error: called for each folder that can't be listed; the folder is skipped.
        above: real paths of the parent folders of `root`.
    """
    place = os.path.realpath(root)
    if place in above:
        return
    try:
        with os.scandir(root) as listed:
            entries = [entry for entry in listed if not entry.name.startswith(".")]
            folders = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("__"))
            names = sorted(e.name for e in entries if not e.is_dir())
    except OSError as error:
        if on_error:
            on_error(error)
        return
    yield Path(root), names
    for name in folders:
        yield from walk(Path(root, name), on_error, above | {place})


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path, and rename it to `path` once its content is on disk.

    On any exception `path` stays as it was.

    Raises:
        OSError: the disk is full or can't be written; its `filename` is set.
    """
    aside = path.with_name(f".{path.name}.part")
    with filename_in_errors(path):
        try:
            yield aside
            sync(aside)
            os.replace(aside, path)
            sync(path.parent)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def filename_in_errors(path: Path) -> Iterator[None]:
    """Set `filename` of an OSError that has none, as when the disk is full."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def sync(path: Path) -> None:
    """Flush a file, or a folder's directory entries, to disk (fsync)."""
    if path.is_dir() and os.name == "nt":
        return  # Windows can't open a folder
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network disks can't flush a folder
            raise
    finally:
        os.close(handle)


def build_once(folder: Path, build: Callable[[Path], None], sealed: bool = False) -> None:
    """Build a folder atomically unless it exists. It appears once its content is on disk.

    One process at a time builds folders of the same parent; the others wait.

    Args:
        folder: path of the folder; missing parents are created.
        build: writes the content into the empty temporary folder that it receives.
        sealed: whether to store sizes and checksums with the folder, and to rebuild it if it is damaged.

    Raises:
        OSError: the disk is full or can't be written.
    """
    if not _damage(folder, sealed):
        return
    parent, aside = folder.parent, folder.with_name(_ASIDE + folder.name)
    with filename_in_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(parent / ".building.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("%s: waiting for another process that builds in it", parent)
            lock.acquire()
        try:
            for left in parent.glob(f"{_ASIDE}*"):  # from killed processes, which held the lock
                shutil.rmtree(left, ignore_errors=True)
            if problem := _damage(folder, sealed):  # another process may have built it meanwhile
                if folder.exists():
                    logger.warning("%s: damaged (%s), rebuilding it", folder, problem)
                    folder.rename(aside)  # other processes never see half a folder
                    shutil.rmtree(aside)
                aside.mkdir()
                build(aside)
                if sealed:
                    sums = {file.name: _sum(file) for file in sorted(aside.iterdir())}
                    (aside / _SEAL).write_text(json.dumps(sums))
                if hasattr(os, "sync"):  # one call: fsync of each of thousands of files is slow
                    os.sync()
                aside.rename(folder)
                sync(parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)  # before the release: a waiting process notices
            lock.release()


def _damage(folder: Path, sealed: bool) -> str:
    """Return what is wrong with a folder, or ""."""
    if not sealed:
        return "" if folder.exists() else "missing"
    try:
        sums = json.loads((folder / _SEAL).read_text())
        for name, expected in sums.items():
            found = _sum(folder / name)
            if found[0] != expected[0]:
                return f"{name}: expected {expected[0]:,} bytes, got {found[0]:,}"
            if found != expected:
                return f"{name}: checksum mismatch"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return f"{_SEAL} is not valid"
    return "" if sums else f"{_SEAL} is empty"


def _sum(file: Path) -> list[int | None]:
    """Return a file's size in bytes, and its CRC-32 up to `_CHECKSUM_LIMIT`, else None."""
    size = file.stat().st_size
    return [size, zlib.crc32(file.read_bytes()) if size <= _CHECKSUM_LIMIT else None]


# Bytes. A recipe has 3 to 10 kB, and PyYAML reads only about 50 kB per second.
LARGEST_YAML = 100_000


def read_yaml(file: Path) -> object:
    """Read a YAML file as plain values.

    Raises:
        ValueError: the file is not YAML, is larger than LARGEST_YAML, or has aliases, which can expand to
            gigabytes; the message is one line.
        OSError: it can't be read.
    """
    with open(file, "rb") as content:
        data = content.read(LARGEST_YAML + 1)
    if len(data) > LARGEST_YAML:
        raise ValueError(f"expected at most {LARGEST_YAML:,} bytes, got more")
    try:
        return yaml.load(data.decode("utf-8"), _PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:300]) from error


def read_json(file: Path) -> Any:
    """Read a JSON file as plain values.

    Raises:
        ValueError: it is not JSON; the message is one line.
        OSError: it can't be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:300]) from error


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's SafeLoader that rejects aliases."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            anchor = self.get_event().anchor
            raise yaml.YAMLError(f"alias *{anchor} is not supported. Write out its value")
        return super().compose_node(parent, index)
