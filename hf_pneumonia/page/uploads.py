"""Uploaded files and zip files of a request, and its error messages.

Zip files are not unpacked to the disk, and only uploaded files are read.
"""

import logging
import os
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from hf_pneumonia.errors import UnreadableImage, UsageError
from hf_pneumonia.inference.inputs import ImageSource, find_images
from hf_pneumonia.page.limits import MAX_ENTRIES, MAX_FILE_BYTES, MAX_IMAGES, MAX_UNPACKED_BYTES

logger = logging.getLogger(__name__)

BUG = "Internal error. The server's log has the details."

_ENTRY = b"PK\1\2"  # signature of an entry in a zip file's directory

_NAME_LENGTH = 200


@contextmanager
def errors_shown() -> Iterator[None]:
    """Show the errors of an event handler as gr.Error: a decorator, or a context in a generator.

    A bug is logged by type and traceback only: its message may contain an image's name, which Gradio
    would print.
    """
    try:
        yield
    except UsageError as error:
        raise gr.Error(str(error), print_exception=False) from None
    except UnreadableImage as error:
        raise gr.Error(f"This file can't be read as an image: {error}", print_exception=False) from None
    except Exception as error:
        place = "".join(traceback.format_tb(error.__traceback__))
        logger.error("%s (message not logged)\n%s", type(error).__qualname__, place)
        raise gr.Error(BUG, print_exception=False) from None


@dataclass(frozen=True, slots=True)
class Upload:
    """An uploaded file.

    Attributes:
        name: the sender's, for display only.
        path: of the file on the server.
    """

    name: str
    path: str


def uploaded(file: Any) -> Upload:
    """Return the upload that a request refers to.

    Args:
        file: a gradio.FileData as JSON; untrusted, so it may be anything.

    Raises:
        UsageError: not a file, or not an uploaded one.
    """
    path = file.get("path") if isinstance(file, dict) else None
    folder = os.path.realpath(get_upload_folder())
    try:
        real = os.path.realpath(path)
        is_there = real.startswith(f"{folder}{os.sep}") and os.path.isfile(real)
    except (TypeError, ValueError):  # not a path, or a null byte in it
        is_there = False
    if not is_there:
        raise UsageError(
            "not-uploaded",
            "file: expected an uploaded file, got another value or a deleted upload. Upload it again, with "
            "gradio_client.handle_file(path)",
        )
    name = file.get("orig_name")
    return Upload(shown_name(os.path.basename(name if isinstance(name, str) else real)), real)


def images_of(uploads: Iterable[Upload]) -> list[ImageSource]:
    """Return the images of files and zip files in order, each to be read by `inputs.ImageReader`.

    Zip files are searched as `inputs.find_images` does. A file that can't be read becomes an ImageSource with
    its problem: a damaged zip file, an unsupported compression, a zip file in a zip file, a zip entry that is
    too large.

    Raises:
        UsageError: more than MAX_IMAGES, or more than MAX_UNPACKED_BYTES by the directories of the zip files,
            before anything is unpacked.
    """
    images: list[ImageSource] = []
    for upload in uploads:
        images += _images_of_upload(upload)
        if len(images) > MAX_IMAGES:
            raise UsageError(
                "too-many-images",
                f"files: expected at most {MAX_IMAGES} images, got more. Send them in several requests",
            )
    total = sum(_size(image) for image in images if not image.problem)
    if total > MAX_UNPACKED_BYTES:
        raise UsageError(
            "too-many-bytes",
            f"files: expected at most {_mb(MAX_UNPACKED_BYTES)} unpacked, got {_mb(total)}. Send them in "
            "several requests",
        )
    return images


def shown_name(name: str) -> str:
    """Return a name of at most 200 characters, with unprintable ones (such as bidi marks) replaced."""
    name = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…"


def _images_of_upload(upload: Upload) -> Iterator[ImageSource]:
    if upload.path.lower().endswith(".zip"):
        yield from _images_of_zip(upload)
    else:
        yield from (replace(image, name=upload.name) for image in find_images([upload.path]))


def _images_of_zip(upload: Upload) -> Iterator[ImageSource]:
    # Counted first, as zipfile lists all entries when it opens.
    if Path(upload.path).read_bytes().count(_ENTRY) > MAX_ENTRIES:
        problem = f"a zip file of more than {MAX_ENTRIES:,} entries"
        yield ImageSource(upload.name, upload.path, problem=problem)
        return
    images = list(find_images([upload.path]))
    if not images:
        yield ImageSource(upload.name, upload.path, problem="no images in this zip file")
    for image in images:
        name, problem = shown_name(upload.name + image.name[len(upload.path) :]), image.problem
        if not problem and _size(image) > MAX_FILE_BYTES:
            problem = f"more than {_mb(MAX_FILE_BYTES)}"
        yield replace(image, name=name, problem=problem)


def _size(image: ImageSource) -> int:
    """Unpacked bytes: first in a file's stamp, before the checksum in a zip entry's."""
    return image.stamp[0] if image.member is None else image.stamp[-2]


def _mb(size: int) -> str:
    return f"{size / 2**20:,.0f} MB"
