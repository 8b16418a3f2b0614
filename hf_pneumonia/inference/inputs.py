"""Image discovery in files, folders and zip files, and reading without unpacking."""

import functools
import hashlib
import logging
import os
import stat
import threading
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hf_pneumonia.data.archive import ARCHIVE_ERRORS, open_zip, read_member
from hf_pneumonia.data.files import UNNAMED, kind_by_beginning, kind_by_name, kind_of, walk
from hf_pneumonia.errors import UnreadableImage

logger = logging.getLogger(__name__)

_OPEN_ZIPS = 8  # zip files kept open at the same time


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Location of one image."""

    name: str  # path as given, joined with the path inside the folder or zip file; for display only
    path: str  # of the image file, or of the zip file that contains it
    member: int | None = None  # index of the entry in the zip file
    stamp: tuple[int, ...] = ()  # size and mtime (ns) of the file; for a zip entry also its size and CRC
    problem: str = ""  # why there is no image at this path

    @property
    def key(self) -> str:
        """24 hex digits that identify the name and the content."""
        return hashlib.sha256(ascii((self.name, self.member, self.stamp)).encode()).hexdigest()[:24]


def find_images(paths: Iterable[str], exclude: Path | None = None) -> Iterator[ImageSource]:
    """Yield the images under the paths, in the order of the paths and sorted by name within each.

    A file that is given by its path counts as an image, whatever its name. In folders and zip files hidden
    files, `__MACOSX`, and files without an image suffix are skipped; a file without any suffix counts if it
    starts like DICOM. A missing path, and a zip file in a zip file, is an ImageSource with a `problem`.

    Args:
        paths: files, folders and zip files.
        exclude: folder to skip, also when it is reached through a link.
    """
    excluded = os.path.realpath(exclude) if exclude else None
    for path in paths:
        image = _image_of_file(path, path)
        if os.path.isdir(path):
            yield from _images_of_folder(path, excluded)
        elif path.lower().endswith(".zip") and not image.problem:
            yield from _images_of_zip(image)
        else:
            yield image


def paths_of_lines(lines: BinaryIO) -> Iterator[str]:
    """Yield one path per line, decoded as file names are. Empty lines are skipped."""
    for number, line in enumerate(lines):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
        if path := os.fsdecode(line.rstrip(b"\r\n")):
            yield path


class ImageReader:
    """Thread-safe reader of image bytes, which keeps zip files open between images."""

    def __init__(self) -> None:
        self._open = functools.lru_cache(_OPEN_ZIPS)(
            open_zip
        )  # an evicted file closes when its last user is done
        self._lock = threading.Lock()

    def __enter__(self) -> "ImageReader":
        return self

    def __exit__(self, *_) -> None:
        self._open.cache_clear()

    def read(self, source: ImageSource) -> str | bytes:
        """Return the input of `read_image`: the path of a file, or the bytes of a zip entry.

        Raises:
            UnreadableImage: there is no image, or the zip entry is damaged, encrypted or larger than
                MAX_BYTES by the zip directory, which is checked before anything is decompressed.
            OSError: the zip file is missing or can't be read.
        """
        if source.problem:
            raise UnreadableImage(source.problem)
        if source.member is None:
            return source.path
        with self._lock:
            archive = self._open(source.path)
        entries = archive.infolist()
        entry = entries[source.member] if source.member < len(entries) else None
        if entry is None or (entry.file_size, entry.CRC) != source.stamp[-2:]:
            raise UnreadableImage("the zip file has changed since it was listed")
        return read_member(archive, entry)


def error_reason(error: Exception) -> str:
    """Return a short reason why a file can't be read."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | ValueError):
        return "no such file"
    return (getattr(error, "strerror", None) or type(error).__name__).lower()


def _images_of_folder(root: str, excluded: str | None) -> Iterator[ImageSource]:
    problems: list[OSError] = []
    found, zips = [], []
    for parent, names in walk(Path(root), problems.append):
        real = os.path.realpath(parent)
        if excluded is None or not f"{real}/".startswith(f"{excluded}/"):
            found += [parent / name for name in names if kind_of(parent / name)]
            zips += [parent / name for name in names if name.lower().endswith(".zip")]
    # Paths compare part by part, which keeps a folder's images together: "a/b" comes before "a-b".
    for path in sorted(found):
        name = os.path.join(root, path.relative_to(root))
        yield _image_of_file(name, str(path))
    if zips:
        message = "%s: skipped %d zip files, such as %s. Give their paths to score the images in them"
        logger.warning(message, root, len(zips), zips[0].name)
    for error in problems:
        yield ImageSource(str(error.filename), str(error.filename), problem=error_reason(error))


def _image_of_file(name: str, path: str) -> ImageSource:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        return ImageSource(name, path, problem=error_reason(error))
    if not stat.S_ISREG(status.st_mode):
        # Reading a pipe could block forever.
        return ImageSource(name, path, problem="neither a file nor a folder")
    return ImageSource(name, path, stamp=(status.st_size, status.st_mtime_ns))


def _images_of_zip(archive_file: ImageSource) -> Iterator[ImageSource]:
    path = archive_file.path
    try:
        with open_zip(path) as archive:
            entries = list(enumerate(archive.infolist()))
            entries = [(number, entry) for number, entry in entries if _is_listed(archive, entry)]
    except (UnreadableImage, OSError) as error:
        problem = error_reason(error) if isinstance(error, OSError) else str(error)
        yield ImageSource(path, path, problem=problem)
        return
    for number, entry in sorted(entries, key=lambda pair: pair[1].filename.split("/")):
        stamp = (*archive_file.stamp, entry.file_size, entry.CRC)
        problem = "zip files in zip files are not opened" if entry.filename.lower().endswith(".zip") else ""
        yield ImageSource(f"{path}/{entry.filename}", path, number, stamp, problem)


def _is_listed(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    if not entry.filename:
        return False  # a damaged directory; is_dir() would fail on an empty name
    parts = entry.filename.split("/")
    # ".." is not a hidden folder. It is never followed: entries are read by index.
    if entry.is_dir() or any(part.startswith((".", "__")) and part not in (".", "..") for part in parts):
        return False
    if parts[-1].lower().endswith(".zip"):
        return True  # listed, with a problem
    kind = kind_by_name(parts[-1])
    if kind != UNNAMED:
        return kind is not None
    try:
        with archive.open(entry) as file:
            return kind_by_beginning(file.read(132)) is not None
    except (*ARCHIVE_ERRORS, OSError):
        return False
