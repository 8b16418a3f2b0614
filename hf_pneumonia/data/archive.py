"""Zip and tar archives, and downloads from Kaggle."""

import hashlib
import logging
import lzma
import shutil
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

from hf_pneumonia.data.files import build_once
from hf_pneumonia.data.images import check_size
from hf_pneumonia.errors import UnreadableImage, UsageError

logger = logging.getLogger(__name__)

# What zipfile raises on damaged or encrypted files and on unknown compression.
ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError)

# Guard against zip bombs: deflate expands zeros 1,000-fold, images at most about 10-fold.
_MAX_RATIO = 200
_ALWAYS_ALLOWED = 64 * 2**20  # bytes

_TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def open_zip(path: str | Path) -> zipfile.ZipFile:
    """Open a zip file. Reject bzip2 and LZMA, which zipfile decompresses without a size limit.

    Raises:
        UnreadableImage: it is damaged, not a zip file, or has members compressed by anything but deflate.
        OSError: it can't be read.
    """
    try:
        archive = zipfile.ZipFile(path)
    except ARCHIVE_ERRORS as error:
        raise UnreadableImage("damaged, or not a zip file") from error
    if {entry.compress_type for entry in archive.infolist()} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        archive.close()
        raise UnreadableImage("unsupported compression in the zip file. Compress it with deflate")
    return archive


def read_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Read one member of a zip file, at most as many bytes as the zip directory states.

    Raises:
        UnreadableImage: it is damaged, encrypted, or larger than `images.MAX_BYTES`.
        OSError: the zip file can't be read.
    """
    if entry.flag_bits & 1:
        raise UnreadableImage("encrypted. Unpack the zip file with its password")
    check_size(entry.file_size)
    try:
        with archive.open(entry) as member:
            return member.read(entry.file_size + 1)
    except ARCHIVE_ERRORS as error:
        raise UnreadableImage(f"damaged zip member: {' '.join(str(error).split())}") from error


def is_archive(path: Path) -> bool:
    """Return whether a file has the name of a zip or tar file."""
    return path.name.lower().endswith((".zip", *_TAR_ENDINGS))


def unpack(archive: Path, cache_dir: Path) -> Path:
    """Unpack a zip or tar file into `cache_dir`/zips unless that was done before; return the folder.

    Raises:
        UsageError: the archive is damaged or encrypted, expands to more than the free space, or expands too
            far for images.
    """
    status = archive.stat()
    key = f"{archive.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    folder = cache_dir / "zips" / hashlib.sha256(key.encode()).hexdigest()[:24]

    def extract(aside: Path) -> None:
        def check(needed: int) -> None:
            limit = max(_MAX_RATIO * status.st_size, _ALWAYS_ALLOWED)
            if needed > limit:
                raise UnreadableImage(f"expands to {needed:,} bytes (limit {limit:,})")
            free = shutil.disk_usage(aside).free
            if needed > free:
                raise UnreadableImage(f"expands to {needed / 1e9:.1f} GB ({free / 1e9:.1f} GB free)")
            logger.info("%s: unpacking", archive)

        if archive.name.lower().endswith(_TAR_ENDINGS):
            with tarfile.open(archive) as content:
                check(sum(entry.size for entry in content))
                content.extractall(aside, filter="data")  # rejects links and names that point outside
            return
        with open_zip(archive) as content:
            check(sum(entry.file_size for entry in content.infolist()))
            for entry in content.infolist():
                entry.filename = entry.filename.replace("\\", "/")  # written on Windows
                # zipfile drops roots and "..", writes links as files, and stops at the stated size.
                content.extract(entry, aside)

    try:
        build_once(folder, extract)
    except (*ARCHIVE_ERRORS, tarfile.TarError, lzma.LZMAError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            "archive-unpack",
            f"{archive}: can't be unpacked into {folder.parent} ({reason}). Download it again, unpack it "
            "yourself and give the folder, or choose another --cache_dir",
        ) from error
    return folder


def fetch_kaggle(name: str) -> Path:
    """Download the Kaggle data set `owner/name` into kagglehub's cache; return its folder.

    Raises:
        UsageError: kagglehub is not installed, or the download failed.
    """
    try:
        import kagglehub
    except ImportError:
        raise UsageError(
            "kagglehub-missing",
            f"--dataset kaggle:{name}: kagglehub is not installed. Run pip install 'kagglehub~=1.0'",
        ) from None
    logger.info("downloading %s from Kaggle", name)
    try:
        return Path(kagglehub.dataset_download(name))
    except Exception as error:  # kagglehub's errors have no common base class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            "kaggle-download",
            f"--dataset kaggle:{name}: download failed ({reason[:300]}). Check the name and the connection, "
            "log in (kaggle.json from kaggle.com/settings in ~/.kaggle), or give the unpacked folder",
        ) from error
