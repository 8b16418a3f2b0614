"""Zip files: opened, and their members read, whatever is wrong with them."""

import struct
import zipfile
import zlib
from pathlib import Path

from hf_pneumonia.data.film import check_size
from hf_pneumonia.errors import UnreadableFilm

# What zipfile raises on damaged, encrypted or strangely compressed files.
BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError)


def open_zip(path: str | Path) -> zipfile.ZipFile:
    """Open a zip file. Of bzip2 and LZMA none, which zipfile inflates at once, however large they grow.

    Raises:
        UnreadableFilm: it is damaged, no zip file, or compressed otherwise than by deflate.
        OSError: it can't be read.
    """
    try:
        archive = zipfile.ZipFile(path)
    except BROKEN as error:
        raise UnreadableFilm("damaged, or no zip file") from error
    if any(one.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for one in archive.infolist()):
        archive.close()
        raise UnreadableFilm("a zip file of a rare kind; pack it as usual (deflate)")
    return archive


def read_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Bytes of one member, as many as the directory says at most.

    Raises:
        UnreadableFilm: it is damaged, encrypted, or by the directory larger than MAX_BYTES.
        OSError: the zip file can't be read.
    """
    if entry.flag_bits & 1:
        raise UnreadableFilm("encrypted: unpack the zip file with its password")
    check_size(entry.file_size)
    try:
        with archive.open(entry) as member:
            return member.read(entry.file_size + 1)
    except BROKEN as error:
        raise UnreadableFilm(f"damaged in the zip file: {' '.join(str(error).split())}") from error
