"""Files, folders and zip files -> images in order, and the bytes of each, read without unpacking."""

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

from hf_pneumonia.data.archive import BROKEN, open_zip, read_member
from hf_pneumonia.data.files import UNNAMED, kind_by_beginning, kind_by_name, kind_of, walk
from hf_pneumonia.errors import UnreadableImage

logger = logging.getLogger(__name__)

_OPEN_ZIPS = 8  # a list of many is read with few of them open


@dataclass(frozen=True, slots=True)
class Source:
    """Where one image is."""

    name: str  # as the user gave the path, joined with what is inside it; for people, and never opened
    path: str  # of its file, or of the zip file that holds it
    member: int | None = None  # number of its entry in that zip file
    stamp: tuple[int, ...] = ()  # size and time of change in ns of the file; size and checksum of an entry
    problem: str = ""  # why the path leads to no image

    @property
    def key(self) -> str:
        """24 hex digits that change with the name, and with the image."""
        return hashlib.sha256(ascii((self.name, self.member, self.stamp)).encode()).hexdigest()[:24]


def find_images(paths: Iterable[str], passed_over: Path | None = None) -> Iterator[Source]:
    """Yield images of files, folders and zip files, in the order of the paths; inside each sorted by name.

    A file that is named is taken for an image, whatever it is called. In folders and zip files hidden files,
    `__MACOSX`, zip files, and files that are no image by their name are skipped; a file without an ending
    counts where it begins as DICOM does. A path that leads nowhere is a Source with its problem.

    Args:
        paths: as given.
        passed_over: a folder whose images are not meant, wherever it lies.
    """
    apart = passed_over and os.path.realpath(passed_over)
    for path in paths:
        image = _image_of_file(path, path)
        if os.path.isdir(path):
            yield from _images_of_folder(path, apart)
        elif path.lower().endswith(".zip") and not image.problem:
            yield from _images_of_zip(image)
        else:
            yield image


def paths_of_lines(lines: BinaryIO) -> Iterator[str]:
    """Yield one path per line, in whatever bytes names have here; empty lines are skipped."""
    for number, line in enumerate(lines):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
        if path := os.fsdecode(line.rstrip(b"\r\n")):
            yield path


class ImageReader:
    """Bytes of images, by several threads at a time. Zip files stay open from one image to the next."""

    def __init__(self) -> None:
        self._open = functools.lru_cache(_OPEN_ZIPS)(open_zip)  # one that falls out is closed after its use
        self._lock = threading.Lock()

    def __enter__(self) -> "ImageReader":
        return self

    def __exit__(self, *_) -> None:
        self._open.cache_clear()

    def read(self, source: Source) -> str | bytes:
        """Return what `read_image` takes: a file's path, or the bytes of an entry of a zip file.

        Raises:
            UnreadableImage: there is no image; or the entry is damaged, encrypted, or larger than MAX_BYTES,
                which is asked of the zip file's directory before anything is decompressed.
            OSError: the zip file is gone, or can't be read.
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
            raise UnreadableImage("the zip file was changed meanwhile")
        return read_member(archive, entry)


def why_not(error: Exception) -> str:
    """Return why a file can't be read, in a few words."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | ValueError):
        return "no such file"
    return (getattr(error, "strerror", None) or type(error).__name__).lower()


def _images_of_folder(root: str, apart: str | None) -> Iterator[Source]:
    problems: list[OSError] = []
    found, zips = [], []
    for parent, names in walk(Path(root), problems.append):
        place = os.path.realpath(parent)
        if apart is None or not f"{place}/".startswith(f"{apart}/"):
            found += [parent / name for name in names if kind_of(parent / name)]
            zips += [parent / name for name in names if name.lower().endswith(".zip")]
    # By parts, so that a folder's images stay together: "a/b" comes before "a-b".
    for path in sorted(found):
        name = os.path.join(root, path.relative_to(root))
        yield _image_of_file(name, str(path))
    if zips:
        said = "zip files in %s are skipped (%d, such as %s): name them to have their images scored"
        logger.warning(said, root, len(zips), zips[0].name)
    for error in problems:
        yield Source(str(error.filename), str(error.filename), problem=why_not(error))


def _image_of_file(name: str, path: str) -> Source:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        return Source(name, path, problem=why_not(error))
    if not stat.S_ISREG(status.st_mode):
        return Source(name, path, problem="neither a file nor a folder")  # a pipe may never end
    return Source(name, path, stamp=(status.st_size, status.st_mtime_ns))


def _images_of_zip(archive_file: Source) -> Iterator[Source]:
    path = archive_file.path
    try:
        with open_zip(path) as archive:
            entries = list(enumerate(archive.infolist()))
            entries = [(number, entry) for number, entry in entries if _is_image_entry(archive, entry)]
    except (UnreadableImage, OSError) as error:
        yield Source(path, path, problem=why_not(error) if isinstance(error, OSError) else str(error))
        return
    for number, entry in sorted(entries, key=lambda one: one[1].filename.split("/")):
        stamp = (*archive_file.stamp, entry.file_size, entry.CRC)
        yield Source(f"{path}/{entry.filename}", path, number, stamp)


def _is_image_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    if not entry.filename:
        return False  # a damaged directory; is_dir() looks at the last letter
    parts = entry.filename.split("/")
    # ".." is no hidden folder but a name that somebody wrote; it is never followed.
    if entry.is_dir() or any(part.startswith((".", "__")) and part not in (".", "..") for part in parts):
        return False
    kind = kind_by_name(parts[-1])
    if kind != UNNAMED:
        return kind is not None
    try:
        with archive.open(entry) as file:
            return kind_by_beginning(file.read(132)) is not None
    except (*BROKEN, OSError):
        return False
