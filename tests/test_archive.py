"""Zip files and Kaggle downloads. A stub module replaces kagglehub."""

import io
import re
import shutil
import sys
import tarfile
import types
import zipfile
from unittest.mock import Mock

import pytest
from conftest import write_images

from hf_pneumonia.data.archive import fetch_kaggle, open_zip, read_member, unpack
from hf_pneumonia.data.sources import load_sources
from hf_pneumonia.errors import UnreadableImage, UsageError

PNG = b"\x89PNG\r\n"  # not decoded here


@pytest.fixture
def kagglehub(monkeypatch):
    """A stub of kagglehub; each test sets its `dataset_download`."""
    hub = types.ModuleType("kagglehub")
    monkeypatch.setitem(sys.modules, "kagglehub", hub)
    return hub


def test_a_kaggle_data_set_is_read_as_its_folder(kagglehub, image_folder, tmp_path):
    kagglehub.dataset_download = {"owner/name": str(image_folder)}.get
    images, expected = (load_sources(name, tmp_path) for name in ("kaggle:owner/name", str(image_folder)))
    assert set(images["source"]) == {"kaggle:owner/name"}
    assert all(images[column] == expected[column] for column in ("file", "label", "split", "patient_id"))


def test_without_kagglehub_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(UsageError, match="pip install 'kagglehub") as error:
        fetch_kaggle("a/b")
    assert error.value.code == "kagglehub-missing"


def test_a_failed_kaggle_download_is_an_error_of_one_line(kagglehub):
    kagglehub.dataset_download = Mock(side_effect=RuntimeError("403 Client Error.\n\nNo: " + "x" * 1000))
    with pytest.raises(UsageError, match="kaggle:a/b.*403") as error:
        fetch_kaggle("a/b")
    assert error.value.code == "kaggle-download"
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.fixture
def archive(tmp_path):
    """A zip file of 5 images in class folders."""
    write_images(tmp_path / "images", 2, 3)
    return _zip_images(tmp_path)


def _zip_images(root, inside="", kind=zipfile.ZIP_DEFLATED):
    paths = sorted((root / "images").rglob("*.*"))
    members = [(f"{inside}{path.relative_to(root / 'images')}", path.read_bytes()) for path in paths]
    return _zip(root / "images.zip", members, kind)


def _zip(path, members, kind=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", kind) as archive:
        for member, data in members:
            archive.writestr(member, data)
    return path


def _refusal(path, cache) -> str:
    with pytest.raises(UsageError) as error:
        unpack(path, cache)
    assert error.value.code == "archive-unpack" and "\n" not in str(error.value)
    assert list((cache / "zips").iterdir()) == []
    return str(error.value)


@pytest.mark.parametrize("inside", ["", "archive/chest_xray/"])
def test_a_zip_file_gives_the_images_of_its_folder_with_or_without_outer_folders(archive, tmp_path, inside):
    _zip_images(tmp_path, inside)
    images, expected = (
        load_sources(str(place), tmp_path / "cache") for place in (archive, tmp_path / "images")
    )
    for column in ("label", "split", "patient_id"):
        assert images[column] == expected[column]
    assert set(images["source"]) == {"images.zip"}


def test_a_zip_file_is_unpacked_once_and_again_after_a_change(archive, tmp_path):
    folder = unpack(archive, tmp_path / "cache")
    kept = next(folder.rglob("*.jpeg"))
    kept.unlink()  # a second unpacking would restore it
    assert unpack(archive, tmp_path / "cache") == folder and not kept.exists()
    assert [path.name for path in (tmp_path / "cache" / "zips").iterdir()] == [folder.name]
    write_images(tmp_path / "images", 1, 1, first=50)
    again = unpack(_zip_images(tmp_path), tmp_path / "cache")
    assert again != folder and len(list(again.rglob("*.jpeg"))) == 7


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_or_encrypted_zip_file_is_an_error_and_leaves_nothing_behind(archive, tmp_path, kind):
    content = _zip_images(tmp_path, kind=kind).read_bytes()
    damaged = content[:200] + bytes(60) + content[260:]  # in the middle of the first image
    for spoilt in (damaged, content[:-300], b"<html>Sign in</html>"):
        archive.write_bytes(spoilt)
        assert str(archive) in _refusal(archive, tmp_path / "cache")
    locked = bytearray(content)
    for found in re.finditer(b"PK\3\4|PK\1\2", content):  # entries, and the directory
        locked[found.start() + (6 if found.group() == b"PK\3\4" else 8)] |= 1
    archive.write_bytes(locked)
    assert "password" in _refusal(archive, tmp_path / "cache")


@pytest.mark.parametrize("kind", ["bz2", "xz"])
def test_a_damaged_tar_file_is_an_error_and_leaves_nothing_behind(tmp_path, kind):
    path, member = tmp_path / f"images.tar.{kind}", tarfile.TarInfo("NORMAL/a.png")
    member.size = 100_000
    with tarfile.open(path, f"w:{kind}") as content:
        content.addfile(member, io.BytesIO(str(list(range(20_000))).encode()))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(60) + data[len(data) // 2 + 60 :])
    assert str(path) in _refusal(path, tmp_path / "cache")


def test_a_zip_file_too_large_for_the_disk_is_an_error_before_anything_is_written(
    archive, tmp_path, monkeypatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
    assert "0.0 GB free" in _refusal(archive, tmp_path / "cache")


def test_nothing_is_unpacked_outside_the_folder_and_links_become_files(tmp_path):
    link = zipfile.ZipInfo("NORMAL/link.png")
    link.external_attr = 0o120777 << 16
    names = ["../x.png", "/etc/y.png", "a/../../z.png", "NORMAL/a.png", "a b/ü (1).png", "..x/y..png"]
    _zip(tmp_path / "x.zip", [(link, "/etc/passwd"), *((name, PNG) for name in names)])
    folder = unpack(tmp_path / "x.zip", tmp_path / "cache")
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"x.png", "etc/y.png", "a/z.png", "NORMAL/link.png", *names[3:]}
    assert (folder / "NORMAL/link.png").read_text() == "/etc/passwd"
    assert not (folder / "NORMAL/link.png").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"x.zip", "cache"}


def test_a_zip_bomb_is_rejected_before_unpacking(tmp_path):
    _zip(tmp_path / "x.zip", [("a.png", bytes(70_000_000))])
    assert "70,000,000" in _refusal(tmp_path / "x.zip", tmp_path / "cache")


def test_member_names_that_the_disk_rejects_are_an_error(tmp_path):
    for members in ([("NORMAL", b"x"), ("NORMAL/a.png", PNG)], [("n" * 300 + ".png", PNG)]):
        _refusal(_zip(tmp_path / "x.zip", members), tmp_path / "cache")


def test_bzip2_and_lzma_are_rejected(tmp_path):
    for kind in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with pytest.raises(UnreadableImage, match="deflate"):
            open_zip(_zip(tmp_path / "x.zip", [("a.png", PNG)], kind))


def test_a_member_is_read_up_to_the_size_in_the_zip_directory(tmp_path):
    path = _zip(tmp_path / "x.zip", [("bomb.png", bytes(10_000_000)), ("a.png", PNG)])
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\1\2")
    data[place + 24 : place + 28] = (100).to_bytes(4, "little")
    path.write_bytes(data)
    with open_zip(path) as archive:
        bomb, whole = archive.infolist()
        with pytest.raises(UnreadableImage, match="damaged"):
            read_member(archive, bomb)
        assert read_member(archive, whole) == PNG
