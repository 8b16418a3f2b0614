"""Requests: the uploaded images that they mean, within the limits, and the errors that they are told.

Nothing is unpacked onto the disk, and nothing is read that was not uploaded.
"""

import logging
import os
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from hf_pneumonia.data.archive import open_zip
from hf_pneumonia.errors import UnreadableImage, UsageError
from hf_pneumonia.inference.inputs import Source, find_images
from hf_pneumonia.page.limits import MAX_ENTRIES, MAX_FILE_BYTES, MAX_IMAGES, MAX_UNPACKED_BYTES

logger = logging.getLogger(__name__)

BUG = "This went wrong here, for a reason that nobody expected. The server's log says where."

_ENTRY = b"PK\1\2"  # each entry of a zip file's directory begins so

_NAME_LENGTH = 200


@contextmanager
def errors_told() -> Iterator[None]:
    """Decorate a handler of an event, or wrap the body of one that is a generator.

    Mistakes become gr.Error. A bug is logged by its type and place alone: its message may hold the name of an
    image, and Gradio would print it.
    """
    try:
        yield
    except gr.Error:
        raise
    except UsageError as error:
        raise gr.Error(str(error), print_exception=False) from None
    except UnreadableImage as error:
        raise gr.Error(f"This file can't be read as an image: {error}", print_exception=False) from None
    except Exception as error:
        place = "".join(traceback.format_tb(error.__traceback__))
        logger.error("%s (its message is not logged)\n%s", type(error).__qualname__, place)
        raise gr.Error(BUG, print_exception=False) from None


@dataclass(frozen=True, slots=True)
class Upload:
    """An uploaded file.

    Attributes:
        name: as the sender named it; for people, and never opened.
        path: where it is.
    """

    name: str
    path: str


def uploaded(file: Any) -> Upload:
    """Return the upload that a request means.

    Args:
        file: a gradio.FileData as JSON has it, or anything else that a stranger may send.

    Raises:
        UsageError: it is none, or means a file that was not uploaded.
    """
    path = file.get("path") if isinstance(file, dict) else None
    folder = os.path.realpath(get_upload_folder())
    try:
        real = os.path.realpath(path)
        is_there = real.startswith(f"{folder}{os.sep}") and os.path.isfile(real)
    except (TypeError, ValueError):  # no path, or a zero byte in it
        is_there = False
    if not is_there:
        raise UsageError(
            "uploaded",
            "expected an uploaded file, got something else or one that is deleted by now; upload it (again), "
            "with gradio_client.handle_file(path)",
        )
    name = file.get("orig_name")
    return Upload(shown_name(os.path.basename(name if isinstance(name, str) else real)), real)


def images_of(uploads: Iterable[Upload]) -> list[Source]:
    """Return the images of files and zip files in their order, each to be read by `inputs.ImageReader`.

    Zip files are searched as `inputs.find_images` does. What can't be read is a Source with its problem: a
    file that is too large, a damaged zip file, one of a rare compression, one in another.

    Raises:
        UsageError: more than MAX_IMAGES, or more than MAX_UNPACKED_BYTES by the directories of the zip files;
            nothing is unpacked before.
    """
    images: list[Source] = []
    for upload in uploads:
        images += _images_of_upload(upload)
        if len(images) > MAX_IMAGES:
            raise UsageError("images-of", f"more than {MAX_IMAGES} images; send them in several parts")
    total = sum(_size(image) for image in images if not image.problem)
    if total > MAX_UNPACKED_BYTES:
        raise UsageError(
            "images-of",
            f"{_mb(total)} unpacked, more than {_mb(MAX_UNPACKED_BYTES)}; send the images in several parts",
        )
    return images


def shown_name(name: str) -> str:
    """Return a name without characters that hide or turn round its letters, and of a line or two at most."""
    name = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…"


def _images_of_upload(upload: Upload) -> Iterator[Source]:
    if os.path.getsize(upload.path) > MAX_FILE_BYTES:
        yield _problem(upload.name, upload.path, f"more than {_mb(MAX_FILE_BYTES)}")
    elif upload.path.lower().endswith(".zip"):
        yield from _images_of_zip(upload)
    else:
        yield from (replace(image, name=upload.name) for image in find_images([upload.path]))


def _images_of_zip(upload: Upload) -> Iterator[Source]:
    problem, zips = _look_into(upload.path)
    if problem:
        yield _problem(upload.name, upload.path, problem)
        return
    images = list(find_images([upload.path]))
    if not images and not zips:
        yield _problem(upload.name, upload.path, "no image in this zip file")
    for image in images:
        name, problem = shown_name(upload.name + image.name[len(upload.path) :]), image.problem
        if not problem and _size(image) > MAX_FILE_BYTES:
            problem = f"more than {_mb(MAX_FILE_BYTES)}"
        yield replace(image, name=name, problem=problem)
    for name in zips:
        yield _problem(f"{upload.name}/{name}", upload.path, "a zip file in a zip file is not opened")


def _look_into(path: str) -> tuple[str, list[str]]:
    """Why a zip file is not opened, or "", and the names of the zip files in it."""
    with open(path, "rb") as file:
        data = file.read()
    # Counted ahead of zipfile, which lists all of them as it opens.
    if data.count(_ENTRY) > MAX_ENTRIES:
        return f"a zip file of more than {MAX_ENTRIES:,} entries", []
    try:
        with open_zip(path) as archive:
            names = archive.namelist()
    except UnreadableImage as error:
        return str(error), []
    return "", [name for name in names if name.lower().endswith(".zip") and not _is_hidden(name)]


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__")) and part not in (".", "..") for part in name.split("/"))


def _size(image: Source) -> int:
    """Bytes unpacked: in a file's stamp they are first, in an entry's they precede its checksum."""
    return image.stamp[0] if image.member is None else image.stamp[-2]


def _problem(name: str, path: str, problem: str) -> Source:
    return Source(shown_name(name), path, problem=problem)


def _mb(size: int) -> str:
    return f"{size / 2**20:,.0f} MB"
