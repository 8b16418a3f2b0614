import os
import zipfile
from pathlib import Path

import pytest
from conftest import zipped
from test_inputs import PNG

from hf_pneumonia.data.images import read_image
from hf_pneumonia.errors import UsageError
from hf_pneumonia.inference.inputs import ImageReader
from hf_pneumonia.page import uploads as module
from hf_pneumonia.page.uploads import Upload, images_of, shown_name, uploaded


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Gradio's folder of uploads."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    (tmp_path / "uploads" / "hash").mkdir(parents=True)
    return tmp_path / "uploads" / "hash"


def _upload(folder: Path, name: str, data: bytes = PNG) -> Upload:
    (folder / name).write_bytes(data)
    return Upload(name, str(folder / name))


def _problems(*uploads: Upload) -> dict[str, str]:
    return {image.name: image.problem for image in images_of(uploads)}


def test_an_upload_is_a_file_in_gradios_folder_with_its_original_name(folder):
    path = _upload(folder, "clean.png").path
    assert uploaded({"path": path, "orig_name": "C D/<b>.png"}) == Upload("<b>.png", os.path.realpath(path))
    assert uploaded({"path": path, "orig_name": 5}).name == "clean.png"


def test_images_keep_their_order_and_zip_entries_their_paths_as_text(folder):
    inside = ["/abs.png", "../../evil.png", "b/2.png", "in/more.zip"]
    ward = _upload(folder, "ward.zip", zipped([(name, PNG) for name in (*reversed(inside), "read.me")]))
    before = set(folder.parents[1].rglob("*"))
    images = images_of([_upload(folder, "one.png"), ward, _upload(folder, "two.png")])
    assert [image.name for image in images] == [
        "one.png",
        *(f"ward.zip/{name}" for name in inside),
        "two.png",
    ]
    assert [image.problem for image in images] == [
        "",
        "",
        "",
        "",
        "zip files in zip files are not opened",
        "",
    ]
    with ImageReader() as reader:
        assert {read_image(reader.read(image)).size for image in images if not image.problem} == {(4, 3)}
    assert set(folder.parents[1].rglob("*")) - before == {folder / "one.png", folder / "two.png"}


def test_a_zip_file_that_can_not_be_opened_has_a_reason(folder):
    cases = {
        "no images in this zip file": zipped([("a.txt", b"a")]),
        "unsupported compression": zipped([("x.png", PNG)], zipfile.ZIP_LZMA),
        "damaged, or not a zip file": zipped([("x.png", PNG)])[:-30],
        "a zip file of more than 5,000 entries": zipped([(f"{n}.txt", b"") for n in range(5_001)]),
    }
    for reason, data in cases.items():
        (problem,) = _problems(_upload(folder, "x.zip", data)).values()
        assert problem.startswith(reason)


def test_a_zip_bomb_is_refused_by_the_directory_before_anything_is_unpacked(folder, monkeypatch):
    bomb = _upload(folder, "bomb.zip", zipped([("x.png", bytes(64 * 2**20)), ("y.png", PNG)]))
    many = _upload(folder, "many.zip", zipped([(f"{n}.png", bytes(15 * 2**20)) for n in range(3)]))
    assert os.path.getsize(bomb.path) < 100_000
    assert _problems(bomb) == {"bomb.zip/x.png": "more than 20 MB", "bomb.zip/y.png": ""}
    monkeypatch.setattr(module, "MAX_UNPACKED_BYTES", 40 * 2**20)
    with pytest.raises(UsageError, match="at most 40 MB unpacked, got 45 MB") as error:
        images_of([many])
    assert error.value.code == "too-many-bytes"


def test_no_more_than_500_images_are_accepted(folder):
    full = _upload(folder, "a.zip", zipped([(f"{number}.png", PNG) for number in range(500)]))
    assert len(images_of([full])) == 500
    with pytest.raises(UsageError, match="at most 500 images") as error:
        images_of([full, _upload(folder, "x.png")])
    assert error.value.code == "too-many-images"


def test_a_shown_name_has_no_hidden_or_bidi_characters():
    assert shown_name("a\u202egnp.exe\n\x00b\ud800") == "a\ufffdgnp.exe\ufffd\ufffdb\ufffd"
    assert shown_name("胸部 Thorax é.png") == "胸部 Thorax é.png"
    assert len(shown_name("x" * 5_000)) == 200
