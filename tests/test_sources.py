import logging
import shutil
from collections import Counter

import numpy as np
import pytest
from conftest import write_film, write_films

from hf_pneumonia.data.labels import LABELS
from hf_pneumonia.data.sources import load_films, short_names
from hf_pneumonia.errors import UsageError


def _labels(films) -> dict[str, str]:
    return {
        file.rsplit("/", 1)[-1]: LABELS[label]
        for file, label in zip(films["file"], films["label"], strict=True)
    }


def test_split_folders_give_every_film_with_its_split_label_and_patient(film_folder, tmp_path):
    films = load_films(str(film_folder), tmp_path)
    assert {name: films["split"][:].count(name) for name in ("train", "validation", "test")} == {
        "train": 85, "validation": 20, "test": 30,
    }  # fmt: skip
    row = films["file"][:].index(str(film_folder / "test" / "PNEUMONIA" / "person203_bacteria_203.jpeg"))
    assert (films[row]["label"], films[row]["split"]) == (1, "test")
    assert films[row]["patient_id"] == "person203_bacteria"
    assert films[row]["image"]["path"] == films[row]["file"]


@pytest.mark.parametrize(
    "names", [("0_normal", "1_pneumonia"), ("healthy", "Bacterial"), ("NORMAL", "viral")]
)
def test_classes_are_mapped_by_name_and_never_by_index(tmp_path, names):
    write_films(tmp_path / "films", 3, 2, names=names)
    labels = _labels(load_films(str(tmp_path / "films"), tmp_path))
    assert labels["IM-0000-0001.jpeg"] == "NORMAL" and labels["person1_bacteria_1.jpeg"] == "PNEUMONIA"
    assert sorted(labels.values()) == ["NORMAL"] * 3 + ["PNEUMONIA"] * 2


def test_folders_inside_a_class_folder_belong_to_the_class(tmp_path):
    write_films(tmp_path / "films", 2, 2)
    write_film(tmp_path / "films" / "NORMAL" / "2019" / "scan.png", 0, np.random.default_rng(0))
    assert _labels(load_films(str(tmp_path / "films"), tmp_path))["scan.png"] == "NORMAL"


def test_a_kaggle_archive_is_found_inside_its_folder_and_its_second_copy_ignored(
    film_folder, tmp_path, caplog
):
    inner = tmp_path / "archive" / "chest_xray"
    shutil.copytree(film_folder, inner)
    shutil.copytree(film_folder, inner / "chest_xray")
    write_films(inner / "__MACOSX" / "train", 2, 2)
    films = load_films(str(tmp_path / "archive"), tmp_path)
    assert len(films) == 135
    assert "ignored: chest_xray" in caplog.text


def test_file_names_that_sound_like_a_split_do_not_make_one(tmp_path):
    write_films(tmp_path / "films", 3, 3)
    write_film(tmp_path / "films" / "NORMAL" / "test_1.png", 0, np.random.default_rng(0))
    films = load_films(str(tmp_path / "films"), tmp_path)
    assert len(films) == 7 and set(films["split"]) == {"train"}


def test_folder_names_with_glob_signs_are_taken_literally(tmp_path):
    write_films(tmp_path / "films [1] *", 2, 2)
    assert len(load_films(str(tmp_path / "films [1] *"), tmp_path)) == 4


def _folder_with_metadata(folder, lines, name="metadata.csv"):
    rng = np.random.default_rng(0)
    for number in range(6):
        write_film(folder / ("NORMAL" if number < 3 else "PNEUMONIA") / f"{number}.png", number > 2, rng)
    (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder)


def test_patient_ids_are_text_and_not_numbers(tmp_path):
    lines = [
        "file_name,patient_id",
        "NORMAL/0.png,0012",
        "NORMAL/1.png,12",
        "PNEUMONIA/3.png,",
        "PNEUMONIA/4.png,7",
    ]
    films = load_films(_folder_with_metadata(tmp_path / "films", lines), tmp_path)
    patients = dict(zip((file[-5] for file in films["file"]), films["patient_id"], strict=True))
    assert [patients[film] for film in "0143"] == ["0012", "12", "7", "train/PNEUMONIA/3.png"]


def test_one_metadata_file_beside_the_split_folders_serves_them_all(film_folder, tmp_path):
    folder = tmp_path / "films"
    shutil.copytree(film_folder, folder)
    files = sorted(path.relative_to(folder) for path in folder.glob("*/*/*"))
    lines = [f'{{"file_name": "{file}", "patient_id": {number}}}' for number, file in enumerate(files)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    films = load_films(str(folder), tmp_path)
    expected = {str(folder / file): str(number) for number, file in enumerate(files)}
    assert dict(zip(films["file"], films["patient_id"], strict=True)) == expected


def test_a_film_that_the_metadata_leave_out_is_kept(tmp_path):
    folder = _folder_with_metadata(tmp_path / "films", ["file_name,patient_id", "NORMAL/0.png,a"])
    assert len(load_films(folder, tmp_path)) == 6


def test_classes_may_stand_in_the_metadata(tmp_path):
    lines = ["file_name,label", *(f"{c}/{n}.png,{'viral' if n % 2 else 'healthy'}" for n, c in
             enumerate(["NORMAL"] * 3 + ["PNEUMONIA"] * 3))]  # fmt: skip
    labels = _labels(load_films(_folder_with_metadata(tmp_path / "films", lines), tmp_path))
    assert labels == {f"{n}.png": LABELS[n % 2] for n in range(6)}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["name,patient_id", "NORMAL/0.png,a"], "expected a column file_name"),
        (["file_name,patient_id", "elsewhere/0.png,a"], "lists none of its films"),
        (["file_name,patient_id", "NORMAL/0.png,a\0b"], None),
    ],
)
def test_metadata_that_do_not_fit_are_an_error_of_one_line(tmp_path, lines, message):
    folder = _folder_with_metadata(tmp_path / "films", lines)
    if message is None:
        (tmp_path / "films" / "metadata.csv").write_bytes(b"\xff\xfe\x00bad")
        message = "can't be read as a table"
    with pytest.raises(UsageError, match=message) as error:
        load_films(folder, tmp_path)
    assert "\n" not in str(error.value)


def test_films_without_a_patient_id_are_patients_of_their_own_in_every_source(tmp_path, caplog):
    sources = [_write_pair(tmp_path / name, ("a.png", "b.png")) for name in ("one", "two")]
    assert len(set(load_films(sources, tmp_path)["patient_id"])) == 4
    assert caplog.text.count("no patient id in 2 of 2 file names") == 2


def test_an_unknown_class_is_an_error_that_lists_what_was_found(tmp_path):
    write_films(tmp_path / "films", 2, 2)
    write_film(tmp_path / "films" / "TUBERCULOSIS" / "1.png", 1, np.random.default_rng(0))
    with pytest.raises(
        UsageError, match="unknown class 'TUBERCULOSIS'.*found: NORMAL, PNEUMONIA, TUBERCULOSIS"
    ):
        load_films(str(tmp_path / "films"), tmp_path)


def test_one_class_only_is_an_error(tmp_path):
    write_films(tmp_path / "films", 3, 0)
    with pytest.raises(UsageError, match="one class only .*found: NORMAL"):
        load_films(str(tmp_path / "films"), tmp_path)


def test_a_folder_without_images_is_an_error(tmp_path):
    (tmp_path / "films" / "NORMAL").mkdir(parents=True)
    (tmp_path / "films" / "NORMAL" / "notes.txt").write_text("none here")
    with pytest.raises(UsageError, match="no images in"):
        load_films(str(tmp_path / "films"), tmp_path)


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        load_films("./none", tmp_path)


def _write_pair(folder, names, first=0):
    """One film of each class, with these names."""
    rng = np.random.default_rng(first)
    for label, (name, kind) in enumerate(zip(names, ("NORMAL", "PNEUMONIA"), strict=True)):
        write_film(folder / kind / name, label, rng)
    return str(folder)


def test_several_sources_are_one_table_in_their_order_and_each_film_tells_its_own(tmp_path):
    write_films(tmp_path / "one", 2, 3)
    write_films(tmp_path / "two" / "train", 1, 2, first=10)
    write_films(tmp_path / "two" / "test", 2, 1, first=20)
    films = load_films([str(tmp_path / "one"), str(tmp_path / "two")], tmp_path)
    assert films["source"][:] == ["one"] * 5 + ["two"] * 6
    assert films["split"][:] == ["train"] * 8 + ["test"] * 3
    alone = load_films(str(tmp_path / "one"), tmp_path)
    for column in ("file", "label", "patient_id", "source"):
        assert films[column][:5] == alone[column][:]


def test_ids_of_a_column_mean_something_in_their_source_only(tmp_path):
    sources = [_write_pair(tmp_path / name, ("0.png", "1.png")) for name in ("one", "two")]
    for source in ("one", "two"):
        lines = "file_name,patient_id\nNORMAL/0.png,12\nPNEUMONIA/1.png,13\n"
        (tmp_path / source / "metadata.csv").write_text(lines)
    assert load_films(sources, tmp_path)["patient_id"][:] == ["one:12", "one:13", "two:12", "two:13"]
    assert load_films(sources[0], tmp_path)["patient_id"][:] == ["12", "13"]


def test_names_of_the_guangzhou_films_mean_the_same_child_in_every_source(tmp_path):
    names = ("IM-0115-0001.jpeg", "person7_virus_9.jpeg")
    others = ("IM-0115-0002.jpeg", "person7_virus_8.jpeg")
    sources = [_write_pair(tmp_path / "one", names), _write_pair(tmp_path / "two", others)]
    assert load_films(sources, tmp_path)["patient_id"][:] == ["IM-0115", "person7_virus"] * 2


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["/data/films"], ["films"]),
        (["/data/one", "/data/two"], ["one", "two"]),
        (["/a/films", "/b/films"], ["a/films", "b/films"]),
        (["/a/x/films", "/b/x/films", "/c"], ["a/x/films", "b/x/films", "c"]),
        (["phantom", "user/films", "kaggle:user/films"], ["phantom", "user/films", "kaggle:user/films"]),
        (["/data/phantom", "phantom"], ["data/phantom", "phantom"]),
        (["user/films", "/b/user/films", "/c/other/films"], ["user/films", "b/user/films", "other/films"]),
        (["/films", "/a/films"], ["//films", "a/films"]),
    ],
)
def test_a_source_is_called_by_its_last_folder_as_far_as_names_differ(tmp_path, monkeypatch, names, short):
    """Paths are below a folder of the test's own, where the first step of each begins."""
    for name in names:
        if name.startswith("/"):
            (tmp_path / name[1:]).mkdir(parents=True, exist_ok=True)
    there = [str(tmp_path / name[1:]) if name.startswith("/") else name for name in names]
    expected = [name.replace("//", f"{tmp_path.name}/") for name in short]
    assert short_names(there) == expected


def test_the_name_of_the_home_folder_is_no_part_of_a_sources_name(tmp_path, monkeypatch):
    home = tmp_path / "somebody"
    for folder in (home / "train", home / "a" / "films", tmp_path / "films"):
        folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    assert short_names([str(home / "train")]) == ["train"]
    names = short_names([str(home / "a" / "films"), str(tmp_path / "films")])
    assert names == ["a/films", f"{tmp_path.name}/films"]


@pytest.mark.parametrize("spelling", ["films", "./films/", "other/../films", "link", "~/films"])
def test_a_folder_that_is_named_twice_is_an_error_however_it_is_spelt(tmp_path, monkeypatch, spelling):
    write_films(tmp_path / "films", 2, 2)
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "films")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UsageError, match=f"--dataset names {tmp_path}/films twice"):
        load_films(["films", spelling], tmp_path)


def test_a_source_of_one_class_is_of_use_beside_another(tmp_path):
    write_films(tmp_path / "healthy only", 4, 0, first=50)
    write_films(tmp_path / "both", 2, 2)
    films = load_films([str(tmp_path / "healthy only"), str(tmp_path / "both")], tmp_path)
    assert Counter(zip(films["source"], films["label"], strict=True)) == {
        ("healthy only", 0): 4, ("both", 0): 2, ("both", 1): 2,
    }  # fmt: skip


@pytest.fixture
def with_covid(tmp_path):
    write_films(tmp_path / "films", 3, 2)
    rng = np.random.default_rng(0)
    for number in range(4):
        write_film(tmp_path / "films" / "COVID-19" / f"c{number}.png", 1, rng)
    return str(tmp_path / "films")


@pytest.mark.parametrize(
    ("covid", "table", "line"),
    [
        ("drop", {("train", 0): 3, ("train", 1): 2}, "left out (--covid pneumonia counts them in"),
        ("pneumonia", {("train", 0): 3, ("train", 1): 6}, "counted as PNEUMONIA"),
        ("keep", {("train", 0): 3, ("train", 1): 2, ("covid", 1): 4}, "kept apart: not trained on"),
    ],
)
def test_covid_is_dropped_mapped_or_kept_and_the_log_says_so(
    with_covid, tmp_path, caplog, covid, table, line
):
    caplog.set_level(logging.INFO)
    films = load_films(with_covid, tmp_path, covid)
    assert Counter(zip(films["split"], films["label"], strict=True)) == table
    for file, split in zip(films["file"], films["split"], strict=True):
        assert (split == "covid") is (covid == "keep" and "COVID-19" in file)
    assert f"films: 4 films of COVID-19 are {line}" in caplog.text


def test_covid_alone_beside_normal_films_is_one_class_unless_it_is_counted_in(tmp_path):
    rng = np.random.default_rng(0)
    write_film(tmp_path / "films" / "NORMAL" / "a.png", 0, rng)
    write_film(tmp_path / "films" / "covid" / "b.png", 1, rng)
    with pytest.raises(UsageError, match="one class only .*found: NORMAL"):
        load_films(str(tmp_path / "films"), tmp_path, "drop")
    assert load_films(str(tmp_path / "films"), tmp_path, "pneumonia")["label"][:] == [0, 1]


def test_a_csv_file_and_a_zip_file_are_sources_like_a_folder(tmp_path):
    write_films(tmp_path / "films", 2, 2)
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "films")
    lines = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in tmp_path.glob("films/*/*")]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(lines))
    sources = [str(tmp_path / name) for name in ("films", "packed.zip", "list.csv")]
    films = load_films(sources, tmp_path / "cache")
    expected = {
        file.rsplit("/", 1)[1]: LABELS[label]
        for file, label in zip(films["file"][:4], films["label"][:4], strict=True)
    }
    for start, name in enumerate(("films", "packed.zip", "list.csv")):
        part = films.select(range(4 * start, 4 * start + 4))
        assert set(part["source"]) == {name} and _labels(part) == expected


def test_a_file_of_another_kind_is_no_source(tmp_path):
    (tmp_path / "films.tar").write_text("")
    with pytest.raises(UsageError, match="--dataset expects .*films.tar.*it is none of these"):
        load_films(str(tmp_path / "films.tar"), tmp_path)


def test_one_class_only_will_do_where_it_is_allowed(tmp_path):
    write_films(tmp_path / "films", 3, 0)
    assert load_films(str(tmp_path / "films"), tmp_path, one_class=True)["label"][:] == [0, 0, 0]
