"""Miniatures of the tables of public data sets: which images, labels, patients and splits are read."""

import gzip
from pathlib import Path

import pytest
from test_layout import DICOM, put

from hf_pneumonia.data.folder import films_of_folder
from hf_pneumonia.data.labels import label_of
from hf_pneumonia.data.sources import load_films
from hf_pneumonia.errors import UsageError


def table(file: Path, *lines: str, encoding: str = "utf-8") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(("\n".join(lines) + "\n").encode(encoding))


def read(root: Path, **options) -> dict[str, tuple]:
    """Name of each image -> label, split, patient."""
    rows = films_of_folder(root, **options)
    assert all(Path(row.image).read_bytes() == DICOM for row in rows)
    return {Path(row.file).name: (label_of(row.class_name), row.split, row.patient_id) for row in rows}


def test_nih_several_findings_in_a_cell_and_splits_in_lists(tmp_path, caplog):
    folder = tmp_path / "nih"
    names = [f"0000001{patient}_00{visit}.png" for patient in (1, 2) for visit in (0, 1)]
    for name in names:
        put(folder, f"images_001/images/{name}")
    table(
        folder / "Data_Entry_2017.csv",
        "Image Index,Finding Labels,Patient ID,View Position",
        *(f"{name},{found},{patient},PA" for name, found, patient in zip(
            names, ("No Finding", "Pneumonia|Infiltration", "Mass|Nodule", "No Finding"), (11, 11, 12, 12),
            strict=True)),
    )  # fmt: skip
    table(folder / "BBox_List_2017.csv", "Image Index,Finding Label,Bbox [x,y,w,h]", f"{names[0]},Mass,1,1,1")
    (folder / "train_val_list.txt").write_text("\n".join(names[:2]))
    (folder / "test_list.txt").write_text("\n".join(names[2:]))
    caplog.set_level("INFO")
    expected = {
        names[0]: (0, "train", "11"), names[1]: (1, "train", "11"), names[3]: (0, "test", "12"),
    }  # fmt: skip
    assert read(folder) == expected
    assert read(tmp_path) == expected  # a folder further up
    given = load_films(str(folder / "Data_Entry_2017.csv"), tmp_path / "cache")  # the table itself
    assert given["split"] == ["train", "train", "test"]
    assert "NIH" in caplog.text and "left out 1 images: other findings" in caplog.text


CHEXPERT = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema,Pneumonia,Support Devices"


@pytest.mark.parametrize(("uncertain", "label"), [("drop", None), ("positive", 1), ("negative", None)])
def test_chexpert_paths_with_its_own_folder_in_front_blanks_and_uncertain_findings(
    tmp_path, uncertain, label
):
    lines, front = {"train": [], "valid": []}, "CheXpert-v1.0-small"
    for split, patient, view, cells in (
        ("train", 1, "frontal", "1.0,,,1.0"),
        ("train", 2, "frontal", ",1.0,1.0,"),
        ("train", 3, "frontal", ",,-1.0,"),
        ("train", 4, "frontal", ",1.0,0.0,"),
        ("train", 5, "lateral", "1.0,,,"),
        ("valid", 6, "frontal", "1.0,0.0,0.0,0.0"),
    ):
        path = f"{split}/patient0000{patient}/study1/view1_{view}.jpg"
        put(tmp_path / front, path)
        lines[split].append(f"{front}/{path},Male,1,{view.title()},AP,{cells}")
    for split, rows in lines.items():
        table(tmp_path / front / f"{split}.csv", CHEXPERT, *rows)
    rows = films_of_folder(tmp_path / front, uncertain=uncertain)
    found = {row.patient_id: (label_of(row.class_name), row.split) for row in rows}
    expected = {"patient00001": (0, "train"), "patient00002": (1, "train"), "patient00006": (0, "validation")}
    assert found == expected | ({} if label is None else {"patient00003": (label, "train")})


def test_mimic_labels_of_studies_joined_to_views_and_splits_of_images(tmp_path):
    ids = {"a1": ("10000032", "50414267"), "b1": ("10000045", "50414268"), "b2": ("10000045", "50414268")}
    for image, (subject, study) in ids.items():
        put(tmp_path, f"files/p10/p{subject}/s{study}/{image}.jpg")
    with gzip.open(tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz", "wt") as file:
        file.write(
            "subject_id,study_id,No Finding,Pneumonia\n10000032,50414267,1.0,\n10000045,50414268,,1.0\n"
        )
    lines = [f"{image},{subject},{study}" for image, (subject, study) in ids.items()]
    table(
        tmp_path / "mimic-cxr-2.0.0-metadata.csv", "dicom_id,subject_id,study_id,ViewPosition",
        *(f"{line},{view}" for line, view in zip(lines, ("PA", "AP", "LATERAL"), strict=True)),
    )  # fmt: skip
    table(
        tmp_path / "mimic-cxr-2.0.0-split.csv", "dicom_id,subject_id,study_id,split",
        *(f"{line},{split}" for line, split in zip(lines, ("train", "validate", "validate"), strict=True)),
    )  # fmt: skip
    assert read(tmp_path) == {"a1.jpg": (0, "train", "10000032"), "b1.jpg": (1, "validation", "10000045")}


def test_padchest_lists_of_findings(tmp_path):
    put(tmp_path, *(f"0/{name}.png" for name in "abc"))
    table(
        tmp_path / "PADCHEST_labels.csv", "ImageID,PatientID,Projection,Labels",
        "a.png,7,PA,['normal']", "b.png,8,PA,\"['pneumonia', 'pleural effusion']\"", "c.png,8,L,['normal']",
    )  # fmt: skip
    assert read(tmp_path) == {"a.png": (0, None, "7"), "b.png": (1, None, "8")}


def test_vindr_the_majority_of_readers_decides(tmp_path):
    put(tmp_path, *(f"train/{name}.dicom" for name in "abc"))
    votes = {"a": "0,1 0,1 1,0", "b": "1,0 1,0 0,1", "c": "1,0 0,1"}
    table(
        tmp_path / "annotations" / "image_labels_train.csv", "image_id,rad_id,Pneumonia,No finding",
        *(f"{image},R{n},{cells}" for image, cast in votes.items() for n, cells in enumerate(cast.split())),
    )  # fmt: skip
    assert {name: row[0] for name, row in read(tmp_path).items()} == {"a.dicom": 0, "b.dicom": 1}


def test_coronahack_its_spelling_and_its_column_of_splits(tmp_path):
    put(tmp_path, "images/train/a.jpeg", "images/train/b.jpeg", "images/test/c.jpeg")
    table(
        tmp_path / "Chest_xray_Corona_Metadata.csv", ",X_ray_image_name,Label,Dataset_type,Label_2",
        "0,a.jpeg,Normal,TRAIN,", "1,b.jpeg,Pnemonia,TRAIN,", "2,c.jpeg,Pnemonia,TEST,",
    )  # fmt: skip
    table(tmp_path / "Chest_xray_Corona_dataset_Summary.csv", ",Label,Image_Count", "0,Normal,1342")
    assert {name: row[:2] for name, row in read(tmp_path).items()} == {
        "a.jpeg": (0, "train"), "b.jpeg": (1, "train"), "c.jpeg": (1, "test"),
    }  # fmt: skip


def test_roboflow_a_table_of_classes_in_each_split(tmp_path):
    for split, name in (("train", "a"), ("valid", "b"), ("test", "c")):
        put(tmp_path, f"{split}/{name}.jpg")
        table(
            tmp_path / split / "_classes.csv",
            "filename, NORMAL, PNEUMONIA",
            f"{name}.jpg, {name == 'a':d}, {name != 'a':d}",
        )
    assert {name: row[:2] for name, row in read(tmp_path).items()} == {
        "a.jpg": (0, "train"), "b.jpg": (1, "validation"), "c.jpg": (1, "test"),
    }  # fmt: skip


def test_ieee8023_findings_with_their_kinds_and_without_ct(tmp_path):
    put(tmp_path, *(f"images/{name}.png" for name in "abcde"))
    table(
        tmp_path / "metadata.csv", "patientid,finding,view,modality,folder,filename",
        "1,No Finding,PA,X-ray,images,a.png", "2,Pneumonia/Bacterial/Streptococcus,PA,X-ray,images,b.png",
        "3,Tuberculosis,PA,X-ray,images,c.png", "4,Pneumonia,Axial,CT,volumes,d.png",
        "5,Pneumonia/Viral,L,X-ray,images,e.png",
    )  # fmt: skip
    assert read(tmp_path) == {"a.png": (0, None, "1"), "b.png": (1, None, "2")}


def test_covidx_lists_without_a_header(tmp_path):
    put(tmp_path, "train/a.png", "train/b.png", "test/c.png")
    table(tmp_path / "train_COVIDx9A.txt", "1 a.png normal rsna", "2 b.png pneumonia rsna")
    table(tmp_path / "test_COVIDx9A.txt", "3 c.png normal rsna")
    assert read(tmp_path) == {
        "a.png": (0, "train", "1"), "b.png": (1, "train", "2"), "c.png": (0, "test", "3"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("no", "yes"), [("False", "True"), ("negative", "positive"), ("0", "1"), ("0.0", "1.0"), ("no", "yes")]
)
def test_yes_and_no_are_labels_and_the_log_says_so(tmp_path, caplog, no, yes):
    put(tmp_path, "a.png", "b.png")
    table(tmp_path / "labels.csv", "path,pneumonia", f"a.png,{no}", f"b.png,{yes}")
    caplog.set_level("INFO")
    assert {name: row[0] for name, row in read(tmp_path).items()} == {"a.png": 0, "b.png": 1}
    assert f"{yes.lower()} is read as PNEUMONIA" in caplog.text


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_a_table_may_be_saved_as_spreadsheets_save_it(tmp_path, encoding):
    put(tmp_path, "a.png", "b.png")
    table(tmp_path / "list.csv", "path,label,rédigé", "a.png,NORMAL,à", "b.png,viral,é", encoding=encoding)
    assert {name: row[0] for name, row in read(tmp_path).items()} == {"a.png": 0, "b.png": 1}


def test_patients_of_a_table_beside_class_folders_are_used_and_a_table_without_is_named(tmp_path, caplog):
    put(tmp_path, "NORMAL/a.png", "PNEUMONIA/b.png")
    table(tmp_path / "patients.csv", "image,patient_id,age", "a.png,0012,3", "b.png,0012,3")
    table(tmp_path / "notes.csv", "image,weather", "a.png,rain")
    assert {row[2] for row in read(tmp_path).values()} == {"0012"}
    assert "notes.csv: not used" in caplog.text


def test_two_tables_with_labels_are_refused_by_their_names(tmp_path):
    put(tmp_path, "a.png")
    for name in ("labels.csv", "classes.csv"):
        table(tmp_path / name, "path,label", "a.png,NORMAL")
    with pytest.raises(UsageError, match=r"classes.csv, labels.csv"):
        read(tmp_path)


def test_a_table_of_other_findings_alone_says_what_it_lacks(tmp_path):
    put(tmp_path, "00000001_000.png")
    table(tmp_path / "d.csv", "Image Index,Finding Labels,Patient ID", "00000001_000.png,Mass,1")
    with pytest.raises(UsageError, match="expected images with PNEUMONIA or No Finding"):
        load_films(str(tmp_path), tmp_path / "cache")
