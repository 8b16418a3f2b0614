import io
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_dicom import TWELVE, _dicom

from hf_pneumonia.errors import UnreadableImage
from hf_pneumonia.inference.inputs import ImageReader, find_images, paths_of_lines


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


PNG = _png(np.arange(12, dtype=np.uint8).reshape(3, 4))
DICOM = _dicom(TWELVE)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _write(path: str, data: bytes = PNG) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data)
    return path


def _zip(path: str, members: list[tuple[str, bytes]]) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def _names(paths, **options) -> list[str]:
    return [source.name for source in find_images(paths, **options)]


def test_a_folder_is_walked_in_order_and_other_files_are_skipped(here, caplog):
    for name in ("b.png", "a/2.jpeg", "a/10.JPG", "a-/x.tif", "a/deep/ü [1].bmp"):
        _write(f"images/{name}")
    for name in (".x.png", ".hid/x.png", "__MACOSX/a/x.png", "readme.txt", "a/images.csv", "Thumbs.db"):
        _write(f"images/{name}")
    _zip("images/more.zip", [("b.png", PNG)])
    os.mkdir("empty")
    expected = ["a/10.JPG", "a/2.jpeg", "a/deep/ü [1].bmp", "a-/x.tif", "b.png"]
    assert _names(["empty", "images"]) == [f"images/{name}" for name in expected]
    assert _names(["./images/"]) == [f"./images/{name}" for name in expected]
    assert _names([str(here / "images" / "a")]) == [str(here / "images" / name) for name in expected[:3]]
    assert "more.zip" in caplog.text


def test_dicom_files_without_a_suffix_are_found_by_their_magic_bytes(here):
    for name in ("study/IM000", "study/1.2.840.10008", "study/x.dcm", "study/x.DICOM"):
        _write(name, DICOM)
    _write("study/DICOMDIR-not", b"not an image")
    _write("study/7.1", b"not an image")
    expected = ["study/1.2.840.10008", "study/IM000", "study/x.DICOM", "study/x.dcm"]
    assert _names(["study"]) == expected
    _zip("study.zip", [(f"study/{path.name}", path.read_bytes()) for path in Path("study").iterdir()])
    assert _names(["study.zip"]) == [f"study.zip/{name}" for name in expected]


def test_paths_keep_their_order_and_a_given_file_is_an_image_whatever_its_name(here):
    paths = [_write("z"), _write(".hidden"), _write("a.txt"), "gone.png", _write("a.png"), "a.png"]
    found = list(find_images(paths))
    assert [source.name for source in found] == paths
    assert [source.problem for source in found] == ["", "", "", "no such file", "", ""]


def test_pipes_and_broken_links_are_rows_and_do_not_block(here):
    os.mkdir("images")
    os.mkfifo("images/pipe.png")
    os.symlink("nowhere", "images/link.png")
    os.symlink(".", "images/round")
    _write("images/x.png")
    found = {source.name: source.problem for source in find_images(["images", "images/pipe.png", "a\0b"])}
    assert found.pop("images/pipe.png") == "neither a file nor a folder"
    assert found == {"images/link.png": "no such file", "images/x.png": "", "a\0b": "no such file"}


def test_images_of_a_zip_file_are_sorted_read_in_memory_and_never_extracted(here):
    other = _png(np.full((2, 2), 9, np.uint8))
    members = [("b/2.png", PNG), ("a.png", PNG), ("../out.png", other), ("/abs.png", other), ("b/", b"")]
    members += [("__MACOSX/._a.png", b"x"), (".x.png", PNG), ("read.me.txt", b"x"), ("é.png", PNG)]
    members += [("ü/more.ZIP", b"x"), (".hidden/more.zip", b"x")]
    _zip("Images.ZIP", members)
    *found, nested = find_images(["Images.ZIP"])
    assert (nested.name, nested.problem) == ("Images.ZIP/ü/more.ZIP", "zip files in zip files are not opened")
    with ImageReader() as reader, ThreadPoolExecutor(4) as threads:
        read = dict(zip((source.name for source in found), threads.map(reader.read, found), strict=True))
    inside = ["../out.png", "/abs.png", "a.png", "b/2.png", "é.png"]
    assert read == {f"Images.ZIP/{name}": dict(members)[name] for name in inside}
    assert os.listdir() == ["Images.ZIP"] and not (here.parent / "out.png").exists()


@pytest.mark.parametrize("later", [[], [("a.png", b"another image")]])
def test_a_zip_file_that_changes_during_a_job_is_an_error(here, later):
    _zip("images.zip", [("a.png", PNG)])
    (source,) = find_images(["images.zip"])
    _zip("images.zip", later)
    with ImageReader() as reader, pytest.raises(UnreadableImage, match="has changed"):
        reader.read(source)


@pytest.mark.parametrize("data", [b"", b"no zip", b"PK\3\4 cut off"])
def test_a_damaged_zip_file_is_one_row(here, data):
    _write("images.zip", data)
    (source,) = find_images(["images.zip"])
    assert source.name == "images.zip" and "damaged" in source.problem
    with ImageReader() as reader, pytest.raises(UnreadableImage, match=source.problem):
        reader.read(source)


def test_the_excluded_folder_is_skipped_also_through_a_link(here):
    _write("images/a.png")
    _write("images/heat/000001-a.png")
    _write("images/heat-b/x.png")
    os.symlink("images/heat", "link")
    assert _names(["images"], exclude=Path("link")) == ["images/a.png", "images/heat-b/x.png"]


def test_a_stamp_changes_with_the_image(here):
    stamps = []
    for data, seconds in ((PNG, 5), (PNG, 5), (PNG, 1), (PNG + b"\0", 1)):
        _write("x.png", data)
        os.utime("x.png", (seconds, seconds))
        stamps += [source.stamp for source in find_images(["x.png"])]
    assert stamps[0] == stamps[1] and len(set(stamps)) == 3


def test_a_list_of_paths_is_read_line_by_line_in_any_encoding():
    lines = io.BytesIO(b"\xef\xbb\xbfa b.png\r\n\n  c.png \nlat\xe9.png\nlast")
    assert list(paths_of_lines(lines)) == ["a b.png", "  c.png ", os.fsdecode(b"lat\xe9.png"), "last"]
