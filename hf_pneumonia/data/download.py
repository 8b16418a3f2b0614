"""Sources that must be fetched or unpacked before they are a folder: Kaggle data sets and zip files."""

import hashlib
import logging
import shutil
import tarfile
from pathlib import Path

from hf_pneumonia.data.archive import BROKEN, open_zip
from hf_pneumonia.data.store_folder import build_once
from hf_pneumonia.errors import UnreadableFilm, UsageError

logger = logging.getLogger(__name__)

# Times its own size that a zip file may unfold to: deflate reaches 1,000 on zeros, films with blank ones
# among them 10. Small files are let off.
_MOST_FOLD, _LET_OFF = 200, 64 * 2**20


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
        tarfile.TarError,
        exceptions.BackendError,
        exceptions.CredentialError,
        exceptions.DataCorruptionError,
        exceptions.NotFoundError,
        exceptions.UnauthenticatedError,
        *BROKEN,
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
            unfolds to more than images do.
    """
    status = archive.stat()
    key = f"{archive.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    folder = cache_dir / "zips" / hashlib.sha256(key.encode()).hexdigest()[:24]

    def extract(aside: Path) -> None:
        with open_zip(archive) as content:
            needed = sum(entry.file_size for entry in content.infolist())
            if needed > max(_MOST_FOLD * status.st_size, _LET_OFF):
                raise UnreadableFilm(f"{status.st_size:,} bytes that unfold to {needed:,}: no images do")
            free = shutil.disk_usage(aside).free
            if needed > free:
                raise UnreadableFilm(f"it holds {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
            logger.info("unpacking %s, once", archive)
            # Names lose their roots and "..", links become files, and a member ends at its stated size.
            content.extractall(aside)

    try:
        build_once(folder, extract)
    except (*BROKEN, OSError) as error:
        raise UsageError(
            f"{archive} can't be unpacked in {folder.parent}: {error}; fetch it again, give a folder, or "
            "choose another --cache_dir"
        ) from error
    return folder
