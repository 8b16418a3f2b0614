"""The directory of a zip file -> why it is not opened, or which of its members are passed over.

Knows nothing of films, and unpacks nothing.
"""

import io
import os
import stat
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# NIH's, MIMIC's and CheXpert's films are 112,000, 377,000 and 224,000. zipfile keeps some 700 bytes of each.
MOST_MEMBERS = 500_000

# Times its own size that a zip file may unfold to: deflate reaches 1,000 on zeros, films with blank ones
# among them 10. Small files are let off.
_MOST_FOLD, _LET_OFF = 200, 64 * 2**20

# In bytes; room for the way to the cache.
_LONGEST_NAME, _LONGEST_PATH = 255, 2048

_ENTRY = b"PK\1\2"
_LOCAL_HEADER = 30  # bytes before a member's name and content


def directory_problem(file: Path) -> str:
    """Why a zip file is not even listed; "" where nothing speaks against it, damage included. zipfile lists
    whatever a directory names, at several times its size.

    Raises:
        OSError: the file can't be read.
    """
    try:
        with _Directory(file) as content:
            zipfile.ZipFile(content).close()
    except _TooMany as error:
        return str(error)
    # Read, and not too large; or of a few bytes; or damaged, in any of the ways that zipfile knows.
    except (_Seen, zipfile.BadZipFile, struct.error, ValueError, NotImplementedError):
        pass
    return ""


class _Seen(Exception):
    """The directory was read."""


class _TooMany(Exception):
    """It names too many members."""


class _Directory(io.FileIO):
    """A file that lets zipfile find the directory wherever it looks for it, and not go through it."""

    def read(self, size: int = -1) -> bytes:
        if size > MOST_MEMBERS * 512:
            raise _TooMany(f"a directory of {size:,} bytes")
        data = super().read(size)
        if data.count(_ENTRY) > MOST_MEMBERS:
            raise _TooMany(f"more than {MOST_MEMBERS:,} members")
        if size > 100:  # the records that lead to it are shorter
            raise _Seen
        return data


def content_problem(archive: zipfile.ZipFile, size: int) -> str:
    """Why an open zip file is not unpacked; "" where nothing speaks against it.

    Args:
        archive: the zip file.
        size: its own, in bytes.
    """
    entries = archive.infolist()
    names = set()
    for entry in entries:
        name = str(PurePosixPath(entry.filename))
        if name in names and not entry.is_dir():
            return f"it holds {name!r} twice"
        names.add(name)
    unfolded = sum(entry.file_size for entry in entries)
    if unfolded > max(_MOST_FOLD * size, _LET_OFF):
        return f"{size:,} bytes that unfold to {unfolded:,}: no films do"
    place = 0
    for entry in sorted(entries, key=lambda one: one.header_offset):
        if entry.header_offset < place:
            return f"{entry.filename!r} lies on another member"
        place = entry.header_offset + _LOCAL_HEADER + len(entry.filename.encode("utf-8", "replace")) // 4
        place += entry.compress_size
    return "its members reach into its directory" if place > archive.start_dir else ""


def pieces(member: zipfile.ZipExtFile, kind: int) -> Iterator[bytes]:
    """The content of an open member, as much as the directory says.

    Args:
        member: from `ZipFile.open`.
        kind: its `compress_type`.
    """
    # bzip2 and LZMA are inflated as much as is read at a time, however large it grows.
    usual = kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    while piece := member.read(1 << 20 if usual else 4096):
        yield piece


def is_safe_name(name: str) -> bool:
    """Whether a member can be unpacked under its name into a folder, and nowhere else."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or parts[0].endswith(":") or len(os.fsencode(name)) > _LONGEST_PATH:
        return False
    return all(part not in ("..", "/", "//") and len(os.fsencode(part)) <= _LONGEST_NAME for part in parts)


def is_plain_file(entry: zipfile.ZipInfo) -> bool:
    """Whether a member is a file, and no link, device or folder."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    return not entry.is_dir() and kind in (0, stat.S_IFREG)
