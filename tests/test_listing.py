import shutil

import numpy as np
import pytest
from conftest import write_image

from hf_pneumonia.data.listing import rows_of_listing
from hf_pneumonia.errors import UsageError


@pytest.fixture
def folder(tmp_path):
    """Four images in one folder and one further down."""
    for name in ("a.png", "b.png", "c.png", "d.png", "deep/below/e.png"):
        write_image(tmp_path / name, 0, np.random.default_rng(0))
    return tmp_path


def _rows(folder, *lines):
    (folder / "LABELS.CSV").write_text("\n".join(lines) + "\n")
    return rows_of_listing(folder / "LABELS.CSV")


def _column(rows, name):
    return [getattr(row, name) for row in rows]


@pytest.mark.parametrize(
    "header",
    ["File_Name,Class", "filename,labels", "Image Index,Finding Labels", "image,diagnosis",
     "X_ray_image_name,Label", "ImageID,Target", "\ufeffpath,label", " path , label ", "path;label",
     "path\tlabel"],
)  # fmt: skip
def test_common_column_names_and_separators_are_recognised(folder, header):
    sign = next(mark for mark in ",;\t" if mark in header)
    rows = _rows(folder, header, f"a.png{sign}NORMAL", sign, f"a.png{sign}NORMAL")
    assert _column(rows, "class_name") == ["NORMAL"]  # empty and repeated lines are skipped


def test_an_image_may_be_an_absolute_path_a_file_name_a_stem_or_a_windows_path(folder):
    lines = ("c.png", f"{folder}/a.png", "e.png", "d", r"deep\below\e.png")
    rows = _rows(folder, "path,label,label_2", *(f"{line},NORMAL,x" for line in lines))
    names = ("c.png", "a.png", "deep/below/e.png", "d.png", "deep/below/e.png")
    assert _column(rows, "file") == _column(rows, "image") == [str(folder / name) for name in names]
    assert _column(rows, "class_name") == ["NORMAL"] * 5 and _column(rows, "patient_id") == [None] * 5


def test_files_beside_an_image_and_links_to_a_parent_folder_do_not_make_its_stem_ambiguous(folder):
    (folder / "deep" / "below" / "e.xml").write_text("")
    (folder / "deep" / "up").symlink_to(folder)
    assert _column(_rows(folder, "path,label", "e,NORMAL"), "file") == [str(folder / "deep/below/e.png")]


def test_patients_and_splits_come_from_their_columns_or_from_the_file_name(folder):
    (folder / "c.png").rename(folder / "person12_virus_3.png")
    lines = ("a.png,NORMAL,007,Training", "b.png,NORMAL,,val", "person12_virus_3.png,viral,,test")
    rows = _rows(folder, "path,label,patient_id,split", *lines)
    assert _column(rows, "patient_id") == ["007", None, "person12_virus"]
    assert _column(rows, "split") == ["train", "validation", "test"]


def test_the_table_of_the_rsna_challenge_is_read_unchanged(folder):
    """It has one row per finding, and files are named after the patient."""
    lines = ("a,,,,,0", "b,264.0,152.0,213.0,379.0,1", "b,562.0,152.0,256.0,453.0,1", "e,1,2,3,4,1")
    rows = _rows(folder, "patientId,x,y,width,height,Target", *lines)
    assert _column(rows, "file") == [str(folder / name) for name in ("a.png", "b.png", "deep/below/e.png")]
    assert _column(rows, "class_name") == ["NORMAL", "PNEUMONIA", "PNEUMONIA"]


def test_line_separators_of_unicode_inside_a_cell_do_not_end_its_line(folder):
    rows = _rows(folder, "path,note,label", "a.png,one\u2028two\x85,NORMAL", '"b.png","one\ntwo",viral')
    assert _column(rows, "class_name") == ["NORMAL", "viral"]


def test_missing_images_are_kept_to_be_reported_as_unreadable(folder):
    rows = _rows(folder, "path,label", "a.png,NORMAL", "lost.png,NORMAL", f"{'x' * 300}.png,NORMAL")
    assert len(rows) == 3 and rows[1].file == str(folder / "lost.png")


@pytest.mark.parametrize(
    ("lines", "code", "match"),
    [
        (("path,age", "a.png,4"), "no-image-or-label-column", "got path, age"),
        (("path:label", "a.png:NORMAL"), "no-image-or-label-column", "got path:label"),
        (("path,label",), "no-image-or-label-column", "an empty file"),
        (("path,label", "a.png,NORMAL", "b.png,"), "incomplete-line", "line 3: .* label"),
        (("path,label", "", ",", ",NORMAL"), "incomplete-line", "line 4: .* path"),
        (("path,label,split", "a.png,NORMAL,later"), "unknown-split", "line 2: .*'later'"),
        (("path,label", "a.png,NORMAL", "a.png,viral"), "image-twice", "line 3: a.png"),
        (("path,label", "x.png,NORMAL", "y.png,viral"), "images-missing", "2 images.*x.png"),
        (("path,label", "twin.png,NORMAL"), "ambiguous-image", "one/twin.png|two/twin.png"),
    ],
)
def test_an_unusable_table_is_an_error_of_one_line(folder, lines, code, match):
    for below in ("one", "two"):
        (folder / below).mkdir()
        shutil.copy(folder / "a.png", folder / below / "twin.png")
    with pytest.raises(UsageError, match=match) as error:
        _rows(folder, *lines)
    assert error.value.code == code and "\n" not in str(error.value)
