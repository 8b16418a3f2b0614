"""Sources that must be fetched or unpacked before they are a folder: Kaggle data sets and zip files."""

import hashlib
import logging
import lzma
import os
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path

from hf_pneumonia.data.store_folder import remove_old_builds, sync, sync_all
from hf_pneumonia.data.zip_rules import (
    content_problem,
    directory_problem,
    is_plain_file,
    is_safe_name,
    pieces,
)
from hf_pneumonia.errors import UsageError

logger = logging.getLogger(__name__)

_ASIDE = "unpacking-"  # begins the name of what is not whole yet

# What the readers of archives raise on damaged ones.
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError)
_UNTRUE = (struct.error, ValueError, NotImplementedError, RuntimeError)  # of a directory that is
_CONTRADICTION = (FileExistsError, NotADirectoryError, IsADirectoryError)


def fetch_kaggle(name: str) -> Path:
    """Folder of the Kaggle data set `owner/name`, downloaded by kagglehub into its own cache.

    Raises:
        UsageError: kagglehub is not installed, or the data set can't be had.
    """
    try:
        import kagglehub
        from kagglehub import exceptions
    except ImportError:
        raise UsageError(
            f"--dataset kaggle:{name} needs kagglehub, which is optional: pip install 'kagglehub~=1.0'"
        ) from None
    logger.info("fetching %s from Kaggle", name)
    try:
        return Path(kagglehub.dataset_download(name))
    # No such name, no login, no network, a broken archive: they have no base in common.
    except (
        OSError,
        ValueError,
        exceptions.BackendError,
        exceptions.CredentialError,
        exceptions.DataCorruptionError,
        exceptions.NotFoundError,
        exceptions.UnauthenticatedError,
        *_BROKEN,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"--dataset kaggle:{name} can't be had ({reason[:300]}); check the name and the connection, "
            "log in (kaggle.json from kaggle.com/settings in ~/.kaggle), or give the unpacked folder"
        ) from error


def unpack(archive: Path, cache_dir: Path) -> Path:
    """Folder with the content of a zip file, unpacked once into `cache_dir`/zips.

    Raises:
        UsageError: the file is damaged, locked by a password, larger than the free space once unpacked, or
            made to be more than films are (`zip_rules`).
    """
    status = archive.stat()
    key = f"{archive.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    folder = cache_dir / "zips" / hashlib.sha256(key.encode()).hexdigest()[:24]
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_old_builds(folder.parent, _ASIDE)
    try:
        if problem := directory_problem(archive):
            raise UsageError(f"{archive} is not unpacked: {problem}; give a folder of films")
        with zipfile.ZipFile(archive) as content:
            if any(entry.flag_bits & 1 for entry in content.infolist()):
                raise UsageError(f"{archive} is locked by a password: unpack it, and give the folder")
            if problem := content_problem(content, status.st_size):
                raise UsageError(f"{archive} is not unpacked: {problem}; give a folder of films")
            needed = sum(entry.file_size for entry in content.infolist())
            free = shutil.disk_usage(folder.parent).free
            if needed > free:
                raise UsageError(
                    f"{archive} holds {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free in {cache_dir}; "
                    "free some, or choose another --cache_dir"
                )
            logger.info("unpacking %s, once", archive)
            # Built aside and renamed when whole: a folder that exists is complete.
            with tempfile.TemporaryDirectory(prefix=_ASIDE, dir=folder.parent) as aside:
                _unpack_members(content, Path(aside), archive)
                os.chmod(aside, 0o755)  # mkdtemp makes it private
                sync_all()
                _rename(Path(aside), folder)
                sync(folder.parent)
    except (*_BROKEN, *_UNTRUE, OSError) as error:
        # With a number it is the disk or the system, but for a place that is both a file and a folder.
        if getattr(error, "errno", None) and not isinstance(error, _CONTRADICTION):
            error.filename = error.filename or str(folder.parent)  # a full disk does not say which
            raise
        raise UsageError(f"{archive} can't be unpacked: {error}; fetch it again, or give a folder") from error
    return folder


def _unpack_members(content: zipfile.ZipFile, folder: Path, archive: Path) -> None:
    """The files of an archive, each under its own name, but for links and names that lead elsewhere."""
    files = [entry for entry in content.infolist() if not entry.is_dir()]
    strange = [entry for entry in files if not (is_plain_file(entry) and is_safe_name(entry.filename))]
    if strange:
        logger.warning(
            "%s: %d members are links, or have names that lead out of a folder or that no file has, and are "
            "passed over, such as %r",
            archive,
            len(strange),
            strange[0].filename[:100],
        )
    passed_over = set(map(id, strange))
    for entry in files:
        if id(entry) in passed_over:
            continue
        file = folder / entry.filename
        file.parent.mkdir(parents=True, exist_ok=True)
        # zipfile ends at the size that the directory says, and compares the checksum there.
        with content.open(entry) as packed, open(file, "xb") as unpacked:
            unpacked.writelines(pieces(packed, entry.compress_type))


def _rename(aside: Path, folder: Path) -> None:
    try:
        os.rename(aside, folder)
    except OSError:
        # Another process unpacked the same archive meanwhile; anything else is a real failure.
        if not folder.exists():
            raise
    aside.mkdir(exist_ok=True)  # for the temporary folder's own cleaning up
