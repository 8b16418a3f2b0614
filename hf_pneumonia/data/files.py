"""Which files may be films, by their names and first bytes. Opens no film."""

import os
from collections.abc import Callable, Iterator
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
