"""Nothing is fetched here: a module of its own stands in for kagglehub and gives local folders, laid out as
the three data sets on Kaggle are."""

import re
import shutil
import sys
import types
import zipfile
from collections import Counter

import numpy as np
import pytest
from conftest import write_film, write_films

from hf_pneumonia.data import download
from hf_pneumonia.data.download import fetch_kaggle, unpack
from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.data.sources import load_films
from hf_pneumonia.errors import UsageError

MOONEY = "paultimothymooney/chest-xray-pneumonia"
BREVIGLIERI = "pcbreviglieri/pneumonia-xray-images"
PRASHANT = "prashant268/chest-xray-covid19-pneumonia"

# The exceptions of kagglehub 1.0.2, none of which is of another's kind.
EXCEPTIONS = [
    "BackendError",
    "CredentialError",
    "DataCorruptionError",
    "NotFoundError",
    "UnauthenticatedError",
]


@pytest.fixture
def kagglehub(monkeypatch):
    """Stands in for kagglehub; a test gives it `dataset_download`."""
    hub, exceptions = types.ModuleType("kagglehub"), types.ModuleType("kagglehub.exceptions")
    for name in EXCEPTIONS:
        setattr(exceptions, name, type(name, (Exception,), {}))
    hub.exceptions = exceptions
    monkeypatch.setitem(sys.modules, "kagglehub", hub)
    monkeypatch.setitem(sys.modules, "kagglehub.exceptions", exceptions)
    return hub


@pytest.fixture
def kaggle(kagglehub, tmp_path):
    """The three data sets, small: folder of each by its name."""
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
    rng = np.random.default_rng(5)
    for first, split in enumerate(("train", "test")):
        write_films(folders[PRASHANT] / "Data" / split, 3, 3, first=2000 + 100 * first)
        for number in range(2):
            write_film(
                folders[PRASHANT] / "Data" / split / "COVID19" / f"COVID19({number}{first}).jpg", 1, rng
            )
    kagglehub.dataset_download = lambda name: str(folders[name])
    return folders


def _table(films):
    return Counter(
        (source, split, LABELS[label])
        for source, split, label in zip(films["source"], films["split"], films["label"], strict=True)
    )


def test_the_data_set_that_most_people_use_is_read_once_and_not_with_its_second_copy(kaggle, tmp_path):
    films = load_films(f"kaggle:{MOONEY}", tmp_path)
    assert _table(films) == {
        (f"kaggle:{MOONEY}", split, label): count
        for split in ("train", "validation", "test")
        for label, count in (("NORMAL", 3), ("PNEUMONIA", 4))
    }


def test_opacity_is_pneumonia(kaggle, tmp_path):
    films = load_films(f"kaggle:{BREVIGLIERI}", tmp_path)
    assert {(split, label): count for (_, split, label), count in _table(films).items()} == {
        (split, label): count
        for split in ("train", "validation", "test")
        for label, count in (("NORMAL", 2), ("PNEUMONIA", 3))
    }


def test_the_three_data_sets_are_one_table_and_each_film_keeps_the_name_of_its_source(kaggle, tmp_path):
    names = [f"kaggle:{name}" for name in (MOONEY, BREVIGLIERI, PRASHANT)]
    films = load_films(names, tmp_path)
    assert Counter(films["source"]) == dict(zip(names, (21, 15, 12), strict=True))
    assert films["source"][:] == sorted(films["source"], key=names.index)
    for file, source in zip(films["file"], films["source"], strict=True):
        assert source.removeprefix("kaggle:") in file


def test_without_kagglehub_the_error_tells_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(UsageError, match=r"optional: pip install 'kagglehub") as error:
        fetch_kaggle(MOONEY)
    assert "\n" not in str(error.value)


LONG = "403 Client Error.\n\nYou don't have permission to access resource at URL: " + "x" * 1000


@pytest.mark.parametrize(
    ("kind", "message"), [(kind, LONG) for kind in (*EXCEPTIONS, OSError, ValueError)] + [(EOFError, "")]
)
def test_whatever_keeps_kaggle_from_giving_a_data_set_is_told_in_one_line(kagglehub, kind, message):
    kind = getattr(kagglehub.exceptions, kind) if isinstance(kind, str) else kind

    def fail(name):
        raise kind(message)

    kagglehub.dataset_download = fail
    reason = "403 Client Error. You don't" if message else kind.__name__
    with pytest.raises(UsageError, match=rf"kaggle:a/b can't be had \({reason}.*log in") as error:
        fetch_kaggle("a/b")
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_a_bug_in_between_keeps_its_traceback(kagglehub):
    def fail(name):
        raise TypeError("a bug")

    kagglehub.dataset_download = fail
    with pytest.raises(TypeError):
        fetch_kaggle("a/b")


def test_the_exceptions_are_those_that_kagglehub_has():
    exceptions = pytest.importorskip("kagglehub.exceptions", reason="kagglehub is not installed")
    for name in EXCEPTIONS:
        assert issubclass(getattr(exceptions, name), Exception)


@pytest.fixture
def archive(tmp_path):
    """A zip file of 5 films in class folders."""
    write_films(tmp_path / "films", 2, 3)
    return _zip(tmp_path / "films.zip", tmp_path / "films")


def _zip(archive, folder, inside="", method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(archive, "w", method) as content:
        for path in sorted(folder.rglob("*.*")):
            content.write(path, f"{inside}{path.relative_to(folder)}")
    return archive


@pytest.mark.parametrize("inside", ["", "chest_xray/", "archive/chest_xray/"])
def test_a_zip_file_gives_the_films_of_its_folder_whatever_is_wrapped_around_them(archive, tmp_path, inside):
    _zip(archive, tmp_path / "films", inside)
    films, expected = (load_films(str(place), tmp_path / "cache") for place in (archive, tmp_path / "films"))
    for column in ("label", "split", "patient_id"):
        assert films[column][:] == expected[column][:]
    assert set(films["source"]) == {"films.zip"}


def test_a_zip_file_of_dicom_files_and_a_table_is_read_by_the_table(tmp_path):
    folder = tmp_path / "rsna"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.dcm").write_bytes(bytes(128) + b"DICM")
    (folder / "labels.csv").write_text("patientId,Target\na,0\nb,1\n")
    films = load_films(str(_zip(tmp_path / "rsna.zip", folder, "rsna/")), tmp_path / "cache")
    assert films["label"][:] == [0, 1]


def test_a_zip_file_is_unpacked_once(archive, tmp_path, monkeypatch):
    folder = unpack(archive, tmp_path / "cache")
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("opened again"))
    assert unpack(archive, tmp_path / "cache") == folder
    assert [path.name for path in (tmp_path / "cache" / "zips").iterdir()] == [folder.name]


def test_a_zip_file_that_changed_is_unpacked_anew(archive, tmp_path):
    folder = unpack(archive, tmp_path / "cache")
    write_films(tmp_path / "films", 1, 1, first=50)
    again = unpack(_zip(archive, tmp_path / "films"), tmp_path / "cache")
    assert again != folder and len(list(again.rglob("*.jpeg"))) == 7


def _damage(archive, method):
    """Bytes in the middle of the first film's content are not what they were."""
    content = bytearray(archive.read_bytes())
    content[200:260] = bytes(60)
    archive.write_bytes(content)


def _truncate(archive, method):
    archive.write_bytes(archive.read_bytes()[:-300])


def _lock(archive, method):
    """The flag that says "encrypted" is set, in the entry and in the directory."""
    content = bytearray(archive.read_bytes())
    for found in re.finditer(b"PK\3\4|PK\1\2", bytes(content)):
        content[found.start() + (6 if found.group() == b"PK\3\4" else 8)] |= 1
    archive.write_bytes(content)


def _replace(archive, method):
    archive.write_bytes(b"<html>Sign in</html>")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("spoil", [_damage, _truncate, _lock, _replace])
def test_a_spoilt_zip_file_is_an_error_of_one_line_and_leaves_nothing_behind(
    archive, tmp_path, spoil, method
):
    _zip(archive, tmp_path / "films", method=method)
    spoil(archive, method)
    with pytest.raises(UsageError, match="password" if spoil is _lock else "fetch it again") as error:
        unpack(archive, tmp_path / "cache")
    assert "\n" not in str(error.value)
    assert list((tmp_path / "cache" / "zips").iterdir()) == []


def test_a_zip_file_too_large_for_the_disk_is_an_error_before_anything_is_written(
    archive, tmp_path, monkeypatch
):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
    with pytest.raises(UsageError, match="0.0 GB are free.*--cache_dir"):
        unpack(archive, tmp_path / "cache")
    assert list((tmp_path / "cache" / "zips").iterdir()) == []


def test_a_zip_file_without_films_is_an_error_that_names_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as content:
        content.writestr("NORMAL/notes.txt", "none here")
    with pytest.raises(UsageError, match=rf"no images in {tmp_path}/texts.zip: expected"):
        load_films(str(tmp_path / "texts.zip"), tmp_path / "cache")
