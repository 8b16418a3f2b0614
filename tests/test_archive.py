"""Zip files and Kaggle. Nothing is fetched: a module of the test's own takes the place of kagglehub and gives
local folders, laid out as the three data sets on Kaggle are."""

import re
import shutil
import sys
import types
import zipfile
from collections import Counter

import numpy as np
import pytest
from conftest import write_film, write_films
from test_inputs import PNG

from hf_pneumonia.data.archive import fetch_kaggle, open_zip, read_member, unpack
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.data.sources import load_films
from hf_pneumonia.errors import UnreadableFilm, UsageError

MOONEY = "paultimothymooney/chest-xray-pneumonia"
BREVIGLIERI = "pcbreviglieri/pneumonia-xray-images"
PRASHANT = "prashant268/chest-xray-covid19-pneumonia"


@pytest.fixture
def kagglehub(monkeypatch):
    """In place of kagglehub; a test gives it `dataset_download`."""
    hub = types.ModuleType("kagglehub")
    monkeypatch.setitem(sys.modules, "kagglehub", hub)
    return hub


@pytest.fixture
def kaggle(kagglehub, tmp_path):
    """The three data sets, small."""
    folders = {name: tmp_path / "kaggle" / name for name in (MOONEY, BREVIGLIERI, PRASHANT)}
    outer = folders[MOONEY] / "chest_xray"
    for first, split in enumerate(("train", "val", "test")):
        write_films(outer / split, 3, 4, first=100 * first)
        write_films(folders[BREVIGLIERI] / split, 2, 3, first=1000 + 100 * first, names=("normal", "opacity"))
    for name in ("train", "val", "test"):
        shutil.copytree(outer / name, outer / "chest_xray" / name)
        junk = outer / "__MACOSX" / "chest_xray" / name / "NORMAL" / "._IM-0000-0001.jpeg"
        junk.parent.mkdir(parents=True)
        junk.write_bytes(b"\0\5\26\7")
    for first, split in enumerate(("train", "test")):
        write_films(folders[PRASHANT] / "Data" / split, 3, 3, first=2000 + 100 * first)
        covid = folders[PRASHANT] / "Data" / split / "COVID19"
        for number in range(2):
            write_film(covid / f"COVID19({number}{first}).jpg", 1, np.random.default_rng(number))
    kagglehub.dataset_download = lambda name: str(folders[name])


def test_the_three_data_sets_of_kaggle_are_one_table_without_second_copies(kaggle, tmp_path):
    names = [f"kaggle:{name}" for name in (MOONEY, BREVIGLIERI, PRASHANT)]
    films = load_films(names, tmp_path)
    kinds = zip(films["source"], films["split"], films["label"], strict=True)
    assert Counter((source, split, LABELS[label]) for source, split, label in kinds) == {
        (source, split, label): count
        for source, counts in zip(names, ((3, 4), (2, 3), (3, 3)), strict=True)
        for split in (("train", "test") if source == names[2] else ("train", "validation", "test"))
        for label, count in zip(LABELS, counts, strict=True)
    }
    for file, source in zip(films["file"], films["source"], strict=True):
        assert source.removeprefix("kaggle:") in file


def test_without_kagglehub_the_error_tells_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(UsageError, match=r"pip install 'kagglehub"):
        fetch_kaggle(MOONEY)


@pytest.mark.parametrize(
    "error", [RuntimeError("403 Client Error.\n\nNo permission: " + "x" * 1000), EOFError(), OSError("403")]
)
def test_whatever_keeps_kaggle_from_giving_a_data_set_is_told_in_one_line(kagglehub, error):
    def fail(name):
        raise error

    kagglehub.dataset_download = fail
    with pytest.raises(UsageError, match=r"kaggle:a/b can't be had \((403|EOFError).*log in") as raised:
        fetch_kaggle("a/b")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600
    assert raised.value.__cause__ is error


@pytest.fixture
def archive(tmp_path):
    """A zip file of 5 images in class folders."""
    write_films(tmp_path / "films", 2, 3)
    return _zip_folder(tmp_path / "films.zip", tmp_path / "films")


def _zip_folder(archive, folder, inside="", method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(archive, "w", method) as content:
        for path in sorted(folder.rglob("*.*")):
            content.write(path, f"{inside}{path.relative_to(folder)}")
    return archive


def _zip(path, members, kind=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", kind) as archive:
        for member, data in members:
            archive.writestr(member, data)
    return path


def _refusal(path, cache) -> str:
    with pytest.raises(UsageError) as error:
        unpack(path, cache)
    assert "\n" not in str(error.value) and list((cache / "zips").iterdir()) == []
    return str(error.value)


@pytest.mark.parametrize("inside", ["", "archive/chest_xray/"])
def test_a_zip_file_gives_the_films_of_its_folder_whatever_is_wrapped_around_them(archive, tmp_path, inside):
    _zip_folder(archive, tmp_path / "films", inside)
    films, expected = (load_films(str(place), tmp_path / "cache") for place in (archive, tmp_path / "films"))
    for column in ("label", "split", "patient_id"):
        assert films[column] == expected[column]
    assert set(films["source"]) == {"films.zip"}


def test_a_zip_file_is_unpacked_once_and_anew_when_it_changed(archive, tmp_path):
    folder = unpack(archive, tmp_path / "cache")
    kept = next(folder.rglob("*.jpeg"))
    kept.unlink()  # would be there again
    assert unpack(archive, tmp_path / "cache") == folder and not kept.exists()
    assert [path.name for path in (tmp_path / "cache" / "zips").iterdir()] == [folder.name]
    write_films(tmp_path / "films", 1, 1, first=50)
    again = unpack(_zip_folder(archive, tmp_path / "films"), tmp_path / "cache")
    assert again != folder and len(list(again.rglob("*.jpeg"))) == 7


def _damage(content):
    content[200:260] = bytes(60)  # in the middle of the first image


def _truncate(content):
    del content[-300:]


def _lock(content):
    for found in re.finditer(b"PK\3\4|PK\1\2", bytes(content)):  # entries, and the directory
        content[found.start() + (6 if found.group() == b"PK\3\4" else 8)] |= 1


def _replace(content):
    content[:] = b"<html>Sign in</html>"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("spoil", [_damage, _truncate, _lock, _replace])
def test_a_spoilt_zip_file_is_an_error_of_one_line_and_leaves_nothing_behind(
    archive, tmp_path, spoil, method
):
    content = bytearray(_zip_folder(archive, tmp_path / "films", method=method).read_bytes())
    spoil(content)
    archive.write_bytes(content)
    assert ("password" if spoil is _lock else "fetch it again") in _refusal(archive, tmp_path / "cache")


def test_a_zip_file_too_large_for_the_disk_is_an_error_before_anything_is_written(
    archive, tmp_path, monkeypatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
    assert "0.0 GB are free" in _refusal(archive, tmp_path / "cache")


def test_a_zip_file_of_dicom_files_and_a_table_is_read_by_the_table_and_one_without_films_is_named(tmp_path):
    members = [(f"rsna/{name}.dcm", bytes(128) + b"DICM") for name in "ab"]
    members.append(("rsna/labels.csv", "patientId,Target\na,0\nb,1\n"))
    assert load_films(str(_zip(tmp_path / "rsna.zip", members)), tmp_path / "cache")["label"] == [0, 1]
    _zip(tmp_path / "texts.zip", [("NORMAL/notes.txt", "none here")])
    with pytest.raises(UsageError, match=rf"{tmp_path}/texts.zip: expected images"):
        load_films(str(tmp_path / "texts.zip"), tmp_path / "cache")


def test_nothing_is_unpacked_outside_of_its_folder_and_links_become_files(tmp_path):
    link = zipfile.ZipInfo("NORMAL/link.png")
    link.external_attr = 0o120777 << 16
    names = ["../x.png", "/etc/y.png", "a/../../z.png", "NORMAL/a.png", "a b/ü (1).png", "..x/y..png"]
    _zip(tmp_path / "x.zip", [(link, "/etc/passwd"), *((name, PNG) for name in names)])
    folder = unpack(tmp_path / "x.zip", tmp_path / "cache")
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"x.png", "etc/y.png", "a/z.png", "NORMAL/link.png", *names[3:]}
    assert (folder / "NORMAL/link.png").read_text() == "/etc/passwd"
    assert not (folder / "NORMAL/link.png").is_symlink()
    assert {one.name for one in tmp_path.iterdir()} == {"x.zip", "cache"}


def test_a_bomb_is_refused_before_anything_is_unpacked(tmp_path):
    _zip(tmp_path / "x.zip", [("a.png", bytes(70_000_000))])
    assert "70,000,000" in _refusal(tmp_path / "x.zip", tmp_path / "cache")


def test_names_that_no_disk_takes_are_an_error_of_one_line(tmp_path):
    for members in ([("NORMAL", b"x"), ("NORMAL/a.png", PNG)], [("n" * 300 + ".png", PNG)]):
        assert "can't be unpacked" in _refusal(_zip(tmp_path / "x.zip", members), tmp_path / "cache")


def test_what_is_inflated_at_once_or_has_a_name_in_letters_that_are_none_is_not_opened(tmp_path):
    for kind in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with pytest.raises(UnreadableFilm, match="deflate"):
            open_zip(_zip(tmp_path / "x.zip", [("a.png", PNG)], kind))
    path = _zip(tmp_path / "x.zip", [("ü.png", PNG)])
    path.write_bytes(path.read_bytes().replace("ü".encode(), b"\xff\xfe"))
    with pytest.raises(UnreadableFilm, match="damaged"):
        open_zip(path)


def test_a_member_is_read_up_to_the_size_that_the_directory_says(tmp_path):
    path = _zip(tmp_path / "x.zip", [("bomb.png", bytes(10_000_000)), ("a.png", PNG)])
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\1\2")
    data[place + 24 : place + 28] = (100).to_bytes(4, "little")
    path.write_bytes(data)
    with open_zip(path) as archive:
        bomb, whole = archive.infolist()
        with pytest.raises(UnreadableFilm, match="damaged"):
            read_member(archive, bomb)
        assert read_member(archive, whole) == PNG
