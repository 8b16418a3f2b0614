import csv
import hashlib

import pytest
from written import written_report

from hf_pneumonia.data.manifest import COLUMNS
from hf_pneumonia.errors import UsageError
from hf_pneumonia.publishing.public_report import source_names, summarise_manifest

# path, split, label, patient, hash, group, kept, reason
IMAGES = [
    ("train/NORMAL/IM-0001-0001.jpeg", "train", "NORMAL", "IM-0001", "a", "1", "true", ""),
    ("train/NORMAL/IM-0001-0002.jpeg", "train", "NORMAL", "IM-0001", "b", "", "true", ""),
    ("train/NORMAL/z.jpeg", "train", "NORMAL", "IM-0001", "a", "1", "false", "copy of /home/x/a"),
    ("train/PNEUMONIA/q.jpeg", "train", "PNEUMONIA", "train/PNEUMONIA/q.jpeg", "c", "", "true", ""),
    ("val/PNEUMONIA/r.jpeg", "validation", "PNEUMONIA", "Anna", "d", "", "true", ""),
    ("test/NORMAL/s.jpeg", "test", "NORMAL", "films:17", "e", "", "false", "unreadable: x.jpeg"),
    ("test/NORMAL/t.jpeg", "test", "NORMAL", "18", "f", "2", "false", "copies with different labels"),
    ("test/NORMAL/u.jpeg", "test", "PNEUMONIA", "19", "f", "2", "false", "patient of another split"),
]
IMAGES = [(f"/home/x/images/{image[0]}", *image[1:]) for image in IMAGES]


def write_run(folder, images=IMAGES, source="films"):
    (folder / "audit").mkdir(parents=True, exist_ok=True)
    with open(folder / "audit" / "manifest.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([image[0], source, *image[1:]] for image in images)
    return folder


def test_images_and_patients_are_counted_without_their_names(tmp_path):
    summary = summarise_manifest(write_run(tmp_path), written_report())
    assert summary["films"] == 8
    splits = {
        "train": {"NORMAL": {"films": 2, "patients": 1}, "PNEUMONIA": {"films": 1, "patients": 1}},
        "validation": {"PNEUMONIA": {"films": 1, "patients": 1}},
    }
    assert summary["sources"] == {"films": {"kind": "local", "splits": splits}}
    reasons = ("unreadable", "copy", "copies with different labels", "patient of another split")
    assert summary["removed"] == dict.fromkeys(reasons, 1)
    assert summary["copies"] == {"groups": 2, "films": 4}
    assert summary["patients_known_by"] == {"file name": 3, "source": 4, "nothing": 1}
    assert "Anna" not in str(summary) and "/home" not in str(summary) and "jpeg" not in str(summary)


def test_a_patient_is_unknown_only_if_its_id_is_the_whole_path_of_the_image(tmp_path):
    for place, patient, known_by in (
        ("test/000007", "7", "source"),
        ("/data/images/train/1.2.3.11.dcm", "11", "source"),
        ("test/000007", "test/000007", "nothing"),
        ("/data/images/a/scan.png", "films:a/scan.png", "nothing"),
        ("/data/images/a/person7_virus_1.png", "person7_virus", "file name"),
    ):
        write_run(tmp_path, [(place, "train", "NORMAL", patient, *IMAGES[0][4:])])
        known = summarise_manifest(tmp_path, written_report())["patients_known_by"]
        assert [name for name, images in known.items() if images] == [known_by]


def test_the_hash_depends_on_images_and_their_use_but_not_on_names_and_paths(tmp_path):
    report = written_report()
    first = summarise_manifest(write_run(tmp_path / "a"), report)["manifest_sha256"]
    lines = sorted(f"{one[4]},{one[1]},{one[2]},{one[6]}\n" for one in IMAGES)
    assert first == hashlib.sha256("".join(lines).encode()).hexdigest()
    moved = [(f"/other/{row}.png", *image[1:3], str(row), *image[4:]) for row, image in enumerate(IMAGES)]
    other = [*IMAGES[:-1], (*IMAGES[-1][:6], "true", "")]
    assert summarise_manifest(write_run(tmp_path / "b", moved), report)["manifest_sha256"] == first
    assert summarise_manifest(write_run(tmp_path / "c", other), report)["manifest_sha256"] != first


@pytest.mark.parametrize(
    ("given", "path", "kind"),
    [
        ("phantom:shortcut", "/home/x/phantom-shortcut-v1/p_1.png", "phantom"),
        ("kaggle:a/b", "/home/x/.cache/b/train/NORMAL/p_1.png", "kaggle"),
        ("user/name", "train/000017", "hub"),
        # A relative folder of that name.
        ("user/name", "user/name/train/NORMAL/p_1.png", "local"),
        # A local folder named phantom.
        ("/home/x/phantom", "/home/x/phantom/train/NORMAL/p_1.png", "local"),
    ],
)
def test_public_sources_are_distinguished_from_local_ones(tmp_path, given, path, kind):
    report, shown = written_report(), given.removeprefix("/home/x/")
    report["recipe"]["dataset"], report["data"]["source"] = [given], shown
    run = write_run(tmp_path, [(path, *IMAGES[0][1:])], shown)
    assert summarise_manifest(run, report)["sources"][shown]["kind"] == kind


def test_images_that_the_pretrained_weights_have_seen_are_counted(tmp_path):
    write_run(tmp_path)
    (tmp_path / "audit" / "manifest.csv").rename(tmp_path / "audit" / "seen_before.csv")
    assert summarise_manifest(write_run(tmp_path), written_report())["seen_before"] == 6


def test_sources_keep_the_order_of_the_recipe_and_one_name_may_contain_a_comma():
    def named(given: list[str], shown: str) -> list[str]:
        return source_names({"recipe": {"dataset": given}, "data": {"source": shown}})

    assert named(["/home/x/images, of mine"], "images, of mine") == ["images, of mine"]
    assert named(["/home/x/b", "/home/x/a"], "b, a") == ["b", "a"]
    with pytest.raises(UsageError) as error:
        named(["/home/x/b", "/home/x/a"], "b, c, a")
    assert error.value.code == "ambiguous-sources"


def test_a_damaged_manifest_is_refused(tmp_path):
    (tmp_path / "audit").mkdir()
    for content in (b"", b"path,split\na,b\n", b"\xff\xfe"):
        (tmp_path / "audit" / "manifest.csv").write_bytes(content)
        with pytest.raises(UsageError, match="manifest.csv"):
            summarise_manifest(tmp_path, written_report())
