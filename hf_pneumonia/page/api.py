"""The API: /predict for one image, /predict_batch for several."""

from collections.abc import Callable

import gradio as gr
from gradio import FileData
from PIL import Image

from hf_pneumonia.errors import UsageError
from hf_pneumonia.inference.classifier import PneumoniaClassifier
from hf_pneumonia.page.answer import UNREADABLE, WORDS
from hf_pneumonia.page.limits import (
    MANY_IMAGES_SECONDS,
    MAX_FILE_BYTES,
    MAX_IMAGES,
    MAX_PIXELS,
    MAX_UNPACKED_BYTES,
)
from hf_pneumonia.page.many_images import ONE_QUEUE, ImageRow, classify_images, confidence, count_rows, row_of
from hf_pneumonia.page.uploads import errors_shown, images_of, uploaded

_PREDICT = f"""Classify one chest X-ray.

image: a JPEG, PNG, TIFF, BMP, GIF, WebP, JPEG 2000, PGM or DICOM file of at most
{MAX_FILE_BYTES >> 20} MB and {MAX_PIXELS / 1e6:g} megapixels; upload it with handle_file.

Returns a dict:
prediction: "Pneumonia", "Normal", "Uncertain: needs review by a radiologist", "Not assessed" (unlike the
X-rays this model was trained on) or "Not a chest X-ray";
confidence: calibrated probability, 0 to 1, of the predicted class; null for other decisions;
decision: "pneumonia", "normal", "uncertain", "not assessed" or "not a chest X-ray";
label: "PNEUMONIA" if probability is at least threshold, else "NORMAL"; null for a refused image;
probability: of pneumonia, calibrated, 0 to 1; null for a refused image;
threshold: the model's operating point, 0 to 1;
reason: why the image is refused; "" otherwise;
model: the model's name.
A file that can't be read raises an error with the reason. Not a medical device.

from gradio_client import Client, handle_file
client = Client("ADDRESS_OF_THIS_PAGE")
print(client.predict(handle_file("image.png"), api_name="/predict"))
"""

_PREDICT_BATCH = f"""Classify up to {MAX_IMAGES} chest X-rays.

images: files as for /predict, and zip files of them; {MAX_FILE_BYTES >> 20} MB each,
{MAX_UNPACKED_BYTES >> 20} MB in total when unpacked.

Returns a dict:
films: one dict per image in order, as from /predict, without model, and with
file: the image's name; error: why it could not be read, else null. With an error, prediction, confidence,
decision, label and probability are null.
counts: number of images by decision, and of those that "could not be read";
model: the model's name.
Images not read within {MANY_IMAGES_SECONDS / 60:g} minutes have an error too. Not a medical device.

from gradio_client import Client, handle_file
client = Client("ADDRESS_OF_THIS_PAGE")
print(client.predict([handle_file("image.png"), handle_file("images.zip")], api_name="/predict_batch"))
"""


def add_endpoints(classifier: PneumoniaClassifier, read: Callable[[str | bytes], Image.Image]) -> None:
    """Add both endpoints to the open gr.Blocks. Arguments as for `build_page`."""

    @errors_shown()
    def predict(image: FileData) -> dict:
        prediction = classifier(read(uploaded(image).path))
        return {**_answer(row_of("", prediction)), "model": classifier.name}

    @errors_shown()
    def predict_batch(images: list[FileData]) -> dict:
        if not isinstance(images, list):
            raise UsageError("not-a-list", "images: expected a list of files, got a single value")
        found = images_of(map(uploaded, images))
        rows = [row for batch in classify_images(classifier, read, found, thumbnails=False) for row in batch]
        return {"films": list(map(_row, rows)), "counts": count_rows(rows), "model": classifier.name}

    gr.api(predict, api_name="predict", api_description=_PREDICT)
    gr.api(predict_batch, api_name="predict_batch", api_description=_PREDICT_BATCH, **ONE_QUEUE)


def _answer(row: ImageRow) -> dict:
    names = ("decision", "label", "probability", "threshold", "reason")
    words = {"prediction": WORDS[row.decision], "confidence": confidence(row)}
    return words | {name: getattr(row, name) for name in names}


def _row(row: ImageRow) -> dict:
    answer = {"file": row.file, **_answer(row), "error": None}
    if row.decision == UNREADABLE:
        answer |= {"prediction": None, "decision": None, "reason": "", "error": row.reason}
    return answer
