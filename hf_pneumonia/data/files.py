"""Files: which may be films, by their names and first bytes, and how one is written whole or not at all."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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


def kind_by_name(name: str) -> str | None:
    """What a file is by its name: IMAGE, DICOM, PERHAPS_DICOM where its beginning must tell, or None."""
    ending = os.path.splitext(name)[1].lower()
    if ending in IMAGE_ENDINGS:
        return IMAGE
    if ending in DICOM_ENDINGS:
        return DICOM
    # 1.2.840.10008 is a name without an ending too
    return PERHAPS_DICOM if not ending or ending[1:].isdigit() else None


def walk(root: Path, on_error: Callable[[OSError], None] | None = None) -> Iterator[tuple[Path, list[str]]]:
    """Every folder below `root`, itself first, with the names of its files; hidden ones are passed over.

    Args:
        root: the folder.
        on_error: told of each folder that can't be listed, which is passed over as well.
    """
    seen = set()
    for parent, children, names in os.walk(root, onerror=on_error, followlinks=True):
        place = os.path.realpath(parent)
        if place in seen:  # a link back to a folder around it, which would never end
            children.clear()
            continue
        seen.add(place)
        children[:] = [name for name in children if not name.startswith((".", "__"))]
        yield Path(parent), [name for name in names if not name.startswith(".")]


def begins_as_dicom(path: Path) -> bool:
    """Whether a file without an ending, as an archive of a hospital exports them, says that it is DICOM."""
    if not path.is_file():  # a broken link, or a pipe that never ends
        return False
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give another name to write a file under, which becomes `path` when it is complete and on the disk.

    Whenever this is cut short, `path` is what it was before.

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
    """Have a file, or a folder's list of names, on the disk itself, where a power cut leaves it."""
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
