import errno
import os

import pytest
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from hf_pneumonia.data.files import DICOM, IMAGE, IMAGE_ENDINGS, PERHAPS_DICOM, kind_by_name, written_whole


def test_the_images_of_a_folder_are_those_that_imagefolder_lists():
    assert set(ImageFolder.EXTENSIONS) == IMAGE_ENDINGS


def test_a_file_is_known_by_its_ending_in_any_case_and_a_film_of_an_archive_by_having_none():
    kinds = {"a.JPeG": IMAGE, "a.dcm": DICOM, "IM0001": PERHAPS_DICOM, "1.2.840.10008": PERHAPS_DICOM}
    assert {name: kind_by_name(name) for name in kinds} == kinds
    assert kind_by_name("notes.txt") is None


def test_a_file_gets_its_name_after_its_content_is_on_the_disk_and_then_the_name_is_put_there(
    tmp_path, monkeypatch
):
    steps, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: steps.append(os.readlink(f"/proc/self/fd/{handle}")))
    monkeypatch.setattr(os, "replace", lambda *names: (steps.append("named"), replace(*names)))
    with written_whole(tmp_path / "report.json") as aside:
        aside.write_text("{}")
    assert steps == [str(aside), "named", str(tmp_path)]
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_is_cut_short_leaves_what_was_there_and_says_which_file(tmp_path, error):
    path = tmp_path / "scores.csv"
    path.write_text("before")
    with pytest.raises(type(error)), written_whole(path) as aside:
        aside.write_text("half")
        raise error
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    assert getattr(error, "filename", str(path)) == str(path)
