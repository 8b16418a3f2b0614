"""Zip files, read member by member; zip and tar files, unpacked once; and Kaggle data sets."""

import hashlib
import logging
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

# What zipfile raises on damaged, encrypted or strangely compressed files.
BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError)

# A zip file may unpack to so many times its own size: deflate reaches 1,000 on zeros, images with blank ones
# among them 10. Small files are exempt.
_MOST_FOLD, _EXEMPT = 200, 64 * 2**20


_TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def open_zip(path: str | Path) -> zipfile.ZipFile:
    """Open a zip file. Refuse bzip2 and LZMA, which zipfile inflates at once, however large they grow.

    Raises:
        UnreadableImage: it is damaged, not a zip file, or compressed otherwise than by deflate.
        OSError: it can't be read.
    """
    try:
        archive = zipfile.ZipFile(path)
    except BROKEN as error:
        raise UnreadableImage("damaged, or no zip file") from error
    if any(one.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for one in archive.infolist()):
        archive.close()
        raise UnreadableImage("a zip file of a rare kind; pack it as usual (deflate)")
    return archive


def read_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Read one member, at most as many bytes as the directory says.

    Raises:
        UnreadableImage: it is damaged, encrypted, or by the directory larger than MAX_BYTES.
        OSError: the zip file can't be read.
    """
    if entry.flag_bits & 1:
        raise UnreadableImage("encrypted: unpack the zip file with its password")
    check_size(entry.file_size)
    try:
        with archive.open(entry) as member:
            return member.read(entry.file_size + 1)
    except BROKEN as error:
        raise UnreadableImage(f"damaged in the zip file: {' '.join(str(error).split())}") from error


def is_archive(path: Path) -> bool:
    """Whether a file is named as a zip or tar file."""
    return path.name.lower().endswith((".zip", *_TAR_ENDINGS))


def unpack(archive: Path, cache_dir: Path) -> Path:
    """Folder with the content of a zip or tar file, unpacked once into `cache_dir`/zips.

    Raises:
        UsageError: damaged, locked by a password, or larger than the free space or than images are.
    """
    status = archive.stat()
    key = f"{archive.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    folder = cache_dir / "zips" / hashlib.sha256(key.encode()).hexdigest()[:24]

    def extract(aside: Path) -> None:
        def check(needed: int) -> None:
            if needed > max(_MOST_FOLD * status.st_size, _EXEMPT):
                raise UnreadableImage(f"{status.st_size:,} bytes that unpack to {needed:,}: no images do")
            free = shutil.disk_usage(aside).free
            if needed > free:
                raise UnreadableImage(f"it holds {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
            logger.info("unpacking %s, once", archive)

        if archive.name.lower().endswith(_TAR_ENDINGS):
            with tarfile.open(archive) as content:
                check(sum(entry.size for entry in content))
                content.extractall(aside, filter="data")  # refuses links and names that lead out of it
            return
        with open_zip(archive) as content:
            check(sum(entry.file_size for entry in content.infolist()))
            for entry in content.infolist():
                entry.filename = entry.filename.replace("\\", "/")  # written on Windows
                # Names lose their roots and "..", links become files, and a member ends at its stated size.
                content.extract(entry, aside)

    try:
        build_once(folder, extract)
    except (*BROKEN, tarfile.TarError, OSError) as error:
        raise UsageError(
            "unpack",
            f"{archive} can't be unpacked in {folder.parent}: {error}; fetch it again, give a folder, or "
            "choose another --cache_dir",
        ) from error
    return folder


def fetch_kaggle(name: str) -> Path:
    """Folder of the Kaggle data set `owner/name`, downloaded by kagglehub into its own cache.

    Raises:
        UsageError: kagglehub is not installed, or the data set can't be had.
    """
    try:
        import kagglehub
    except ImportError:
        raise UsageError(
            "fetch-kaggle",
            f"--dataset kaggle:{name} needs kagglehub, which is optional: pip install 'kagglehub~=1.0'",
        ) from None
    logger.info("fetching %s from Kaggle", name)
    try:
        return Path(kagglehub.dataset_download(name))
    except Exception as error:  # no such name, no login, no network, a broken archive: without a common base
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            "fetch-kaggle",
            f"--dataset kaggle:{name} can't be had ({reason[:300]}); check the name and the connection, "
            "log in (kaggle.json from kaggle.com/settings in ~/.kaggle), or give the unpacked folder",
        ) from error
