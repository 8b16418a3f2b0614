"""Files and folders: which may be images, how they are written whole or not at all, settings as plain values."""

import errno
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
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

IMAGE, DICOM, UNNAMED = "image", "dicom", "unnamed"

# First bytes of JPEG, PNG, TIFF, BMP, GIF, WebP, JPEG 2000 and PGM.
_IMAGE_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"II*\0", b"MM\0*", b"BM", b"GIF8", b"RIFF")
_IMAGE_BEGINNINGS += (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"P5")

_SEAL = "whole.json"  # size and checksum of each file of a folder; written last
_SUMMED_UP = 64 * 2**20  # bytes up to which a file's checksum is compared, at 1 GB/s; larger: its size only
_ASIDE = ".building-"  # begins the name of a folder that is not whole yet


def kind_of(path: Path) -> str | None:
    """Tell whether a file is an image or DICOM: by its ending, or by its first bytes where it has none."""
    kind = kind_by_name(path.name)
    if kind != UNNAMED:
        return kind
    if not path.is_file():  # a broken link, or a pipe that never ends
        return None
    try:
        with open(path, "rb") as file:
            return kind_by_beginning(file.read(132))
    except OSError:
        return None


def kind_by_name(name: str) -> str | None:
    """Tell a file by its name: IMAGE, DICOM, UNNAMED where its first bytes must tell, or None."""
    ending = os.path.splitext(name)[1].lower()
    if ending in IMAGE_ENDINGS:
        return IMAGE
    if ending in DICOM_ENDINGS:
        return DICOM
    # 1.2.840.10008 is a name without an ending too
    return UNNAMED if not ending or ending[1:].isdigit() else None


def kind_by_beginning(first: bytes) -> str | None:
    """Tell a file by its first 132 bytes: IMAGE, DICOM or None."""
    if first[128:132] == b"DICM":
        return DICOM
    return IMAGE if first.startswith(_IMAGE_BEGINNINGS) else None


def walk(
    root: Path, on_error: Callable[[OSError], None] | None = None, above: frozenset[str] = frozenset()
) -> Iterator[tuple[Path, list[str]]]:
    """Yield every folder below `root`, itself first, with the names of its files. Hidden ones are skipped.

    Links to folders are followed, but those back to a folder around them.

    Args:
        root: the folder.
        on_error: called for each folder that can't be listed, which is skipped too.
        above: real paths of the folders around `root`.
    """
    place = os.path.realpath(root)
    if place in above:
        return
    try:
        with os.scandir(root) as listed:
            entries = sorted(
                (one for one in listed if not one.name.startswith(".")), key=lambda one: one.name
            )
            folders = [one.name for one in entries if one.is_dir() and not one.name.startswith("__")]
            names = [one.name for one in entries if not one.is_dir()]
    except OSError as error:
        if on_error:
            on_error(error)
        return
    yield Path(root), names
    for name in folders:
        yield from walk(Path(root, name), on_error, above | {place})


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


# A recipe has 3 kB, one that names a hundred sources 10 kB; YAML is read at about 50 kB a second.
LARGEST_YAML = 100_000


def read_yaml(file: Path) -> object:
    """Return the plain values of a YAML file.

    Raises:
        ValueError: not YAML, larger than LARGEST_YAML, or with aliases, of which a few lines can expand to
            gigabytes; the message is one line.
    """
    with open(file, "rb") as content:
        data = content.read(LARGEST_YAML + 1)
    if len(data) > LARGEST_YAML:
        raise ValueError(f"more than {LARGEST_YAML:,} bytes")
    try:
        return yaml.load(data.decode("utf-8"), _PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:300]) from error


def read_json(file: Path) -> object:
    """Return the plain values of a JSON file.

    Raises:
        ValueError: it is not JSON; the message is one line.
        OSError: it can't be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:300]) from error


class _PlainLoader(yaml.SafeLoader):
    """yaml's SafeLoader without aliases."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            anchor = self.get_event().anchor
            raise yaml.YAMLError(f"the alias *{anchor}: aliases are not read, write out what it means")
        return super().compose_node(parent, index)
