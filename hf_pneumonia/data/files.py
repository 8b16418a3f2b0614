"""Files and folders: which may be images, and how they are written whole or not at all."""

import errno
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

# Those of datasets' `imagefolder`, which takes half a second to be asked.
IMAGE_ENDINGS = frozenset(
    (
        ".apng .blp .bmp .bufr .bw .cur .dcx .dds .dib .emf .eps .fit .fits .flc .fli .ftc .ftu .gbr "
        ".gif .grib .icb .icns .ico .iim .im .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx "
        ".mpeg .mpg .msp .pbm .pcd .pcx .pgm .png .pnm .ppm .ps .psd .pxr .ras .rgb .rgba .sgi .tga "
        ".tif .tiff .vda .vst .webp .wmf .xbm .xpm"
    ).split()
)
DICOM_ENDINGS = frozenset({".dcm", ".dicom"})

IMAGE, DICOM, PERHAPS_DICOM = "image", "dicom", "perhaps dicom"

_SEAL = "whole.json"  # size and checksum of each file of a folder; written last
_SUMMED_UP = 64 * 2**20  # bytes up to which a file's checksum is compared, at 1 GB/s; larger: its size only
_ASIDE = ".building-"  # begins the name of a folder that is not whole yet


def kind_by_name(name: str) -> str | None:
    """Tell a file by its name: IMAGE, DICOM, PERHAPS_DICOM where its first bytes must tell, or None."""
    ending = os.path.splitext(name)[1].lower()
    if ending in IMAGE_ENDINGS:
        return IMAGE
    if ending in DICOM_ENDINGS:
        return DICOM
    # 1.2.840.10008 is a name without an ending too
    return PERHAPS_DICOM if not ending or ending[1:].isdigit() else None


def walk(root: Path, on_error: Callable[[OSError], None] | None = None) -> Iterator[tuple[Path, list[str]]]:
    """Yield every folder below `root`, itself first, with the names of its files. Hidden ones are skipped.

    Args:
        root: the folder.
        on_error: called for each folder that can't be listed, which is skipped too.
    """
    seen = set()
    for parent, children, names in os.walk(root, onerror=on_error, followlinks=True):
        place = os.path.realpath(parent)
        if place in seen:  # a link back to a folder around it would never end
            children.clear()
            continue
        seen.add(place)
        children[:] = [name for name in children if not name.startswith((".", "__"))]
        yield Path(parent), [name for name in names if not name.startswith(".")]


def begins_as_dicom(path: Path) -> bool:
    """Whether a file without an ending, as hospital archives export them, says that it is DICOM."""
    if not path.is_file():  # a broken link, or a pipe that never ends
        return False
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give another name to write a file under, which becomes `path` when it is complete and on the disk.

    If this is cut short, `path` stays as it was.

    Raises:
        OSError: the disk is full, or can't be written; it says which file.
    """
    aside = path.with_name(f".{path.name}.part")
    with naming(path):
        try:
            yield aside
            sync(aside)
            os.replace(aside, path)
            sync(path.parent)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError the name of a file where it has none: a full disk does not say which."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk, so that it survives a power cut."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a folder of some network disks
            raise
    finally:
        os.close(handle)


def build_once(folder: Path, build: Callable[[Path], None], sealed: bool = False) -> None:
    """Build a folder where there is none. It appears when it is complete and on the disk. Folders of one
    parent are built one after the other, by one process at a time.

    Args:
        folder: its name; parents are made.
        build: writes the content into the empty folder that it is given.
        sealed: whether sizes and checksums are kept with the folder, and a damaged one is built anew.

    Raises:
        OSError: the disk is full, or can't be written.
    """
    if not _damage(folder, sealed):
        return
    parent, aside = folder.parent, folder.with_name(_ASIDE + folder.name)
    with naming(parent):
        parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(parent / ".building.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("another run builds in %s: waiting for it", parent)
            lock.acquire()
        try:
            for left in parent.glob(f"{_ASIDE}*"):  # of processes that were killed: they held the lock
                shutil.rmtree(left, ignore_errors=True)
            if problem := _damage(folder, sealed):  # unless another process built it while this one waited
                if folder.exists():
                    logger.warning("%s is damaged (%s) and built anew", folder, problem)
                    folder.rename(aside)  # other processes see it whole or not at all
                    shutil.rmtree(aside)
                aside.mkdir()
                build(aside)
                if sealed:
                    sums = {file.name: _sum(file) for file in sorted(aside.iterdir())}
                    (aside / _SEAL).write_text(json.dumps(sums))
                if hasattr(os, "sync"):  # all files at once: a call for each of thousands takes too long
                    os.sync()
                aside.rename(folder)
                sync(parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: who waits sees that it is gone
            lock.release()


def _damage(folder: Path, sealed: bool) -> str:
    """What is wrong with a folder; "" for nothing."""
    if not sealed:
        return "" if folder.exists() else "missing"
    try:
        sums = json.loads((folder / _SEAL).read_text())
        for name, expected in sums.items():
            found = _sum(folder / name)
            if found[0] != expected[0]:
                return f"{name} has {found[0]:,} bytes, and had {expected[0]:,}"
            if found != expected:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return f"{_SEAL} says nothing"
    return "" if sums else f"{_SEAL} is empty"


def _sum(file: Path) -> list[int | None]:
    """Bytes of a file, and CRC-32 of a small one."""
    size = file.stat().st_size
    return [size, zlib.crc32(file.read_bytes()) if size <= _SUMMED_UP else None]
