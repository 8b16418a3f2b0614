"""The audit of a small folder whose faults are known, against counts made by hand."""

import base64
import csv
import dataclasses
import io
import json
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import write_film, write_films
from PIL import Image, ImageDraw
from sklearn.metrics import roc_auc_score

from hf_pneumonia.__main__ import main
from hf_pneumonia.data.appearance import STATISTICS, appearance_scores
from hf_pneumonia.data.film import film_array
from hf_pneumonia.data.filmset import FilmSet, prepare_films
from hf_pneumonia.data.labels import is_global_id
from hf_pneumonia.data.manifest import COLUMNS, SEEN, read_seen, write_manifest, write_seen
from hf_pneumonia.errors import UsageError, run_script
from hf_pneumonia.evaluation.appearance_audit import audit_appearance, audit_lines, score_appearance
from hf_pneumonia.evaluation.audit import auroc_alone, check_leakage, crossing_ids, taught
from hf_pneumonia.evaluation.audit_page import count_films, summary, write_audit
from hf_pneumonia.evaluation.audit_plots import (
    FilmFacts,
    choose_films,
    measure_films,
    patients_by_films,
    vary,
)
from hf_pneumonia.evaluation.figures import auroc

STRENGTHS = {"rotation": 10, "exposure": 0.2, "blur": 0.0, "noise": (0.02, 0.01), "horizontal_flip": 0.0}


class Page(HTMLParser):
    """Tags, pictures, text and tables (by id, rows of cells) of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.images, self.text = set(), [], ""
        self.tables: dict[str | None, list[list[str]]] = {}
        self._cell = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self._cell = tag in ("td", "th")
        if tag == "img":
            self.images.append(dict(attrs))
        elif tag == "table":
            self._rows = self.tables[dict(attrs).get("id")] = []
        elif tag == "tr":
            self._rows.append([])
        elif self._cell:
            self._rows[-1].append("")

    def handle_endtag(self, tag):
        self._cell = False

    def handle_data(self, data):
        self.text += data
        if self._cell:
            self._rows[-1][-1] += data


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """Split folders of 12 + 12 training, 10 + 10 validation and 10 + 10 test films, and then:

    a copy of a test film in train under another name; a copy inside train; a pair of copies with two labels;
    a test patient with another film in train; a coarse pair (IM-0300, NORMAL2-IM-0300); a damaged film.
    """
    folder = tmp_path_factory.mktemp("faulty") / "films"
    rng = np.random.default_rng(0)
    for split, first, count in (("train", 0, 12), ("val", 100, 10), ("test", 200, 10)):
        for number in range(first, first + count):
            write_film(folder / split / "NORMAL" / f"IM-{number:04d}-0001.jpeg", 0, rng)
            write_film(folder / split / "PNEUMONIA" / f"person{number}_virus_1.jpeg", 1, rng)
    normal, sick = folder / "train" / "NORMAL", folder / "train" / "PNEUMONIA"
    shutil.copy(folder / "test" / "PNEUMONIA" / "person200_virus_1.jpeg", sick / "x1.jpeg")
    shutil.copy(normal / "IM-0000-0001.jpeg", normal / "x2.jpeg")
    shutil.copy(normal / "IM-0001-0001.jpeg", sick / "x3.jpeg")
    write_film(normal / "IM-0200-0002.jpeg", 0, rng)
    write_film(normal / "IM-0300-0001.jpeg", 0, rng)
    write_film(folder / "test" / "NORMAL" / "NORMAL2-IM-0300-0001.jpeg", 0, rng)
    (sick / "person11_virus_1.jpeg").write_bytes(b"<html>not found</html>")
    return folder


@pytest.fixture(scope="module")
def audited(faulty, tmp_path_factory):
    """Its films, findings, and the folder that the audit wrote."""
    folder = tmp_path_factory.mktemp("audit")
    films = prepare_films(str(faulty), 64, tmp_path_factory.mktemp("cache"), max_unreadable=1)
    return films, write_audit(films, folder / "out", STRENGTHS), folder / "out"


def test_every_fault_is_counted(audited):
    _, findings, _ = audited
    assert findings["films"] == 70
    assert findings["removed"] == {
        "unreadable": 1,
        "copy": 2,  # x1, and one of IM-0000 and x2
        "copies with different labels": 2,
        "patient of another split": 1,
    }
    assert findings["unreadable"][0]["reason"].startswith("an HTML page")
    assert findings["duplicates"]["groups"] == findings["duplicates"]["groups_of_equal_bytes"] == 3
    assert [len(group) for group in findings["conflicting_labels"]] == [2]


def test_leaks_are_counted_as_given_and_none_is_left_but_the_coarse_one(audited):
    _, findings, _ = audited
    assert findings["leakage"] == {
        "as_given": {"patients_fine": 1, "patients_coarse": 2, "duplicate_groups": 1},
        "as_used": {"patients_fine": 0, "patients_coarse": 1, "duplicate_groups": 0},
    }


def test_the_manifest_has_a_line_for_every_film_and_says_what_became_of_it(audited, faulty):
    films, _, folder = audited
    with open(folder / "manifest.csv", newline="") as file:
        reader = csv.DictReader(file)
        rows = {row["path"].removeprefix(f"{faulty}/"): row for row in reader}
    assert tuple(reader.fieldnames) == COLUMNS
    assert len(rows) == 70 and sum(row["kept"] == "true" for row in rows.values()) == 64
    copy, test = rows["train/PNEUMONIA/x1.jpeg"], rows["test/PNEUMONIA/person200_virus_1.jpeg"]
    assert copy["content_hash"] == test["content_hash"] and len(test["content_hash"]) == 64
    assert copy["duplicate_group"] == test["duplicate_group"] != ""
    assert (copy["kept"], copy["split"], test["kept"], test["split"]) == ("false", "train", "true", "test")
    assert copy["reason"] == f"copy of {faulty}/test/PNEUMONIA/person200_virus_1.jpeg"
    assert rows["train/NORMAL/IM-0001-0001.jpeg"]["reason"] == "copies with different labels"
    assert rows["train/NORMAL/IM-0200-0002.jpeg"]["reason"] == "patient of another split"
    assert rows["train/PNEUMONIA/person11_virus_1.jpeg"]["reason"].startswith("unreadable: an HTML page")
    alone = rows["train/NORMAL/IM-0005-0001.jpeg"]
    assert (alone["duplicate_group"], alone["reason"], alone["label"]) == ("", "", "NORMAL")
    assert (alone["source"], alone["patient_id"]) == ("films", "IM-0005")


def test_the_page_stands_alone_and_shows_what_there_is(audited):
    films, findings, folder = audited
    html = (folder / "audit.html").read_text(encoding="utf-8")
    page = Page(html)
    assert {path.name for path in folder.iterdir()} == {"audit.html", "audit.json", "manifest.csv"}
    assert json.loads((folder / "audit.json").read_text()) == findings
    shown = " ".join(image["alt"] for image in page.images)
    for what in ("different labels", "two splits", "least alike", "each split", "Samples", "number of their"):
        assert what in shown
    for what in ("Size of the original", "Mean gray", "best statistics", "varied by each step"):
        assert what in shown
    for image in page.images:
        kind, data = image["src"].split(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert np.ptp(np.asarray(picture.convert("L"))) > 100
    assert not page.tags & {"script", "link", "iframe", "object", "a"}
    assert not any(text in html for text in ("http://", "https://", "file://", "url(", "@import"))
    assert "images of patients" in page.text and "private" in page.text
    assert page.tables["removed"][1:] == [[name, str(count)] for name, count in findings["removed"].items()]
    assert all(note in page.text for note in films.notes)


def test_a_training_leaves_out_the_pictures_that_only_show_the_images(audited, tmp_path):
    write_audit(audited[0], tmp_path)
    shown = {image["alt"] for image in Page((tmp_path / "audit.html").read_text()).images}
    assert len(shown) == 4 and not any("Samples" in alt or "varied" in alt for alt in shown)


def test_the_same_images_give_the_same_page_and_leave_the_global_random_numbers_alone(audited, tmp_path):
    films, _, folder = audited
    before = torch.get_rng_state()
    write_audit(films, tmp_path, STRENGTHS)
    assert torch.equal(before, torch.get_rng_state())
    assert (tmp_path / "audit.html").read_bytes() == (folder / "audit.html").read_bytes()


def test_the_table_counts_images_and_patients_of_each_split_and_source(film_folder, tmp_path):
    write_films(tmp_path / "b" / "train", 6, 9, first=300)
    write_films(tmp_path / "b" / "test", 0, 4, first=400)
    rng = np.random.default_rng(5)
    for number in range(3):
        write_film(tmp_path / "b" / "train" / "COVID19" / f"corona ({number}).jpeg", 1, rng, (120, 80))
    films = prepare_films([str(film_folder), str(tmp_path / "b")], 32, tmp_path, covid="keep")
    heads, rows = count_films(films)
    assert heads == ["split", "NORMAL", "PNEUMONIA", "COVID-19", "images", "patients", "ratio"]
    found = {name: row for name, *row in rows}
    name = film_folder.name
    # Five images of train are second ones of their patients.
    assert found["train"] == ["46", "54", "0", "100", "95", "1 : 1.17"]
    assert found[f"test, {name}"] == ["12", "18", "0", "30", "30", "1 : 1.5"]
    assert found["test, b"] == ["0", "4", "0", "4", "4", "–"]
    assert found["covid"] == ["0", "0", "3", "3", "3", "–"]
    assert found["all"][3:5] == ["157", "152"]


def test_brightness_sizes_and_gray_levels_are_those_of_the_decoded_files(audited):
    films, _, _ = audited
    facts = measure_films(films)
    assert len(facts.row) == np.sum(films.split != "") and not set(facts.row) & set(films.store.unreadable)
    decoded = np.stack([film_array(str(path), 64) for path in films.file[facts.row]])
    np.testing.assert_allclose(facts.brightness, decoded.reshape(len(decoded), -1).mean(axis=1))
    for kind in range(2):
        np.testing.assert_array_equal(
            facts.levels[kind], np.bincount(decoded[facts.kind == kind].ravel(), minlength=256)
        )
    assert set(facts.width) == {90} and set(facts.height) == {70}


@pytest.fixture
def facts() -> FilmFacts:
    """Six images of three patients and two sources."""
    return FilmFacts(
        row=np.arange(6),
        kind=np.array([0, 0, 1, 1, 1, 1]),
        split=np.array(["train", "test", "train", "train", "train", "test"]),
        source=np.array(["x", "x", "x", "y", "x", "x"], dtype=object),
        patient=np.array(["a", "b", "c", "c", "c", "b"], dtype=object),
        width=np.full(6, 90),
        height=np.full(6, 70),
        brightness=np.full(6, 100.0),
        levels=np.ones((3, 256), dtype=np.int64),
    )


def test_samples_come_from_every_split_and_source_in_turn(facts):
    chosen = choose_films(facts, 1, 3)
    places = [(facts.split[i], facts.source[i]) for i in chosen]
    assert chosen == choose_films(facts, 1, 3)
    assert places == [("train", "x"), ("train", "y"), ("test", "x")]
    assert sorted(choose_films(facts, 1, 99)) == [2, 3, 4, 5] and choose_films(facts, 2, 5) == []
    assert choose_films(facts, 1, 99, among=facts.split == "test") == [5]


def test_patients_are_sorted_by_the_number_of_their_images(facts):
    assert patients_by_films(facts, 1).tolist() == [1, 0, 1, 0, 0, 0, 0, 0]
    counts = {1: 4, 5: 1, 6: 2, 9: 1, 10: 3, 19: 1, 20: 1, 70: 2}
    patient = np.repeat(np.arange(15).astype(object), np.repeat(list(counts), list(counts.values())))
    many = dataclasses.replace(facts, patient=patient, kind=np.zeros(len(patient), dtype=int))
    assert patients_by_films(many, 0).tolist() == [4, 0, 0, 0, 1, 3, 4, 3]


def test_auroc_alone_counts_pairs_and_does_not_care_for_the_direction_or_for_covid():
    rng = np.random.default_rng(3)
    values, kind = rng.integers(0, 9, 60), rng.integers(0, 3, 60)
    sick, healthy = values[kind == 1][:, None], values[kind == 0]
    area = np.mean((sick > healthy) + 0.5 * (sick == healthy))
    assert auroc_alone(values, kind) == auroc_alone(-values, kind) == pytest.approx(max(area, 1 - area))
    assert auroc_alone(values[kind > 0], kind[kind > 0]) is None


def test_a_step_is_shown_near_its_limit_one_way_and_another():
    film = torch.full((64, 64), 128, dtype=torch.uint8)
    torch.manual_seed(0)
    for noisy in vary(film, {"noise": (0.1, 0.01)}, 0):
        assert 0.07 < noisy.std() < 0.11
    film[:, 32:] = 160
    dark, bright = sorted(picture.mean() for picture in vary(film, {"exposure": 0.3}, 1))
    assert dark < film.float().mean() / 255 - 0.05 < film.float().mean() / 255 + 0.05 < bright


def test_an_id_crosses_where_it_stands_in_two_of_the_three_splits():
    ids = np.array(["a", "a", "b", "b", "c", "c", "d"])
    split = np.array(["train", "test", "train", "train", "train", "", "covid"])
    assert crossing_ids(ids, split) == {"a"}


def test_text_that_only_sick_films_carry_tells_the_label(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(10):
        write_film(tmp_path / "films" / "NORMAL" / f"{number}.png", 0, rng, size=(600, 500))
        path = tmp_path / "films" / "PNEUMONIA" / f"{number}.png"
        write_film(path, 1, rng, size=(600, 500))
        film = Image.open(path)
        ImageDraw.Draw(film).text((8, 8), "mAs 2.56 kV 55 15:42:07", fill=255, font_size=20)
        film.save(path)
    findings = write_audit(prepare_films(str(tmp_path / "films"), 64, tmp_path), tmp_path / "out")
    assert findings["overlays"]["text"] == {"NORMAL": 0, "PNEUMONIA": 10}
    assert findings["label_told_by"]["burned-in text"] == 1.0
    assert findings["label_told_by"]["source"] == findings["label_told_by"]["width / height"] == 0.5


def test_a_source_of_one_class_tells_the_label(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(9):
        write_film(tmp_path / "one" / "NORMAL" / f"{number}.png", 0, rng)
        write_film(tmp_path / "two" / "PNEUMONIA" / f"{number}.png", 1, rng)
    films = prepare_films([str(tmp_path / "one"), str(tmp_path / "two")], 64, tmp_path)
    assert write_audit(films, tmp_path / "out")["label_told_by"]["source"] == 1.0


NAMES = ("NORMAL", "PNEUMONIA")


def _film_set(statistics, label, given):
    """Images of a patient each, used as they are given, of which nothing but the appearance is known."""
    count = len(label)
    facts = np.zeros(count, [("appearance", "f4", len(STATISTICS))])
    facts["appearance"] = statistics
    names = np.array([f"f{row:03d}" for row in range(count)], dtype=object)
    given = np.array(given, dtype=object)
    return FilmSet(
        store=SimpleNamespace(facts=facts),
        file=names,
        source=np.full(count, "a", dtype=object),
        patient_id=names,
        patient=names,
        label=np.array(label),
        given=given,
        split=given.astype("<U10"),
        duplicate_group=np.arange(count),
        reason=np.full(count, "", dtype=object),
        notes=[],
    )


@pytest.fixture(scope="module")
def shifted():
    """200 training and 80 test images. NORMAL is brighter in both, and noisier in test than in train."""
    rng = np.random.default_rng(0)
    label = np.arange(280) % 2
    test = np.arange(280) >= 200
    statistics = rng.normal(size=(280, len(STATISTICS)))
    statistics[:, STATISTICS.index("brightness")] -= 3 * label
    statistics[:, STATISTICS.index("noise")] += 4 * (test & (label == 0))
    return _film_set(statistics, label, np.where(test, "test", "train"))


def _find(films):
    return audit_appearance(films, score_appearance(films))


def test_the_statistics_that_predict_the_label_are_ranked_and_put_in_words(shifted):
    found = _find(shifted)
    train = slice(0, 200)
    statistics, label = shifted.store.facts["appearance"][train], shifted.label[train]
    areas = [roc_auc_score(label, column) for column in statistics.T]
    best = sorted(range(len(areas)), key=lambda one: -abs(areas[one] - 0.5))[:5]
    assert [one["statistic"] for one in found["statistics"]] == [STATISTICS[one] for one in best]
    assert [one["auroc"] for one in found["statistics"]] == [
        pytest.approx(0.5 + abs(areas[one] - 0.5), abs=1e-4) for one in best
    ]
    first = found["statistics"][0]
    assert (first["statistic"], first["words"]) == ("brightness", "brighter")
    column = statistics[:, STATISTICS.index("brightness")]
    assert first["median"] == {
        name: pytest.approx(np.median(column[label == index]), abs=1e-4) for index, name in enumerate(NAMES)
    }


def test_a_test_split_of_the_sources_is_kept_apart_and_compared_class_by_class(shifted):
    found = _find(shifted)
    scores = appearance_scores(
        shifted.store.facts["appearance"][:200], shifted.label[:200], shifted.patient[:200]
    )
    assert found["images"] == 200
    assert found["auroc"] == auroc(shifted.label[:200], scores, shifted.patient[:200])
    normal, pneumonia = (found["test_against_train"][name] for name in NAMES)
    assert normal["value"] > 0.95 and normal["ci95"][0] > 0.9
    assert pneumonia["ci95"][0] < 0.5 < pneumonia["ci95"][1]
    lines = audit_lines(found)
    assert lines[0].startswith("appearance alone predicts the label with AUROC 0.9")
    assert ": NORMAL images are brighter, " in lines[0]
    assert len(lines) == 2
    assert "the test's NORMAL images look different from training's (AUROC 0.9" in lines[1]
    assert lines[1].endswith("]): expect another specificity")


def test_a_split_that_is_cut_here_is_judged_whole(shifted):
    cut = np.where(np.arange(280) % 5 == 0, "test", "train")
    found = _find(dataclasses.replace(shifted, split=cut.astype("<U10")))
    assert (found["images"], found["test_against_train"]) == (280, None)


def test_where_no_statistic_predicts_the_label_the_line_says_so():
    rng = np.random.default_rng(0)
    films = _film_set(rng.normal(size=(300, len(STATISTICS))), np.arange(300) % 2, ["train"] * 300)
    (line,) = audit_lines(_find(films))
    assert line.startswith("appearance alone is not shown to predict the label: AUROC 0.")


def test_too_few_patients_give_no_value_and_no_picture(shifted, tmp_path):
    few = np.flatnonzero(shifted.label == 1)[9:]  # 9 patients of class 1 are left
    split = np.where(np.isin(np.arange(280), few), "", shifted.split)
    found = _find(dataclasses.replace(shifted, split=split))
    nothing = {"value": None, "ci95": None}
    assert (found["auroc"], found["statistics"]) == (nothing, [])
    assert found["test_against_train"]["PNEUMONIA"] == nothing
    assert "fewer than 10 patients" in audit_lines(found)[0]
    write_films(tmp_path / "films", 9, 20)
    findings = write_audit(prepare_films(str(tmp_path / "films"), 64, tmp_path), tmp_path / "out")
    page = Page((tmp_path / "out" / "audit.html").read_text())
    assert findings["appearance"]["images"] == 29
    assert "fewer than 10 patients" in page.text and "appearance" not in page.tables


def test_the_page_and_the_summary_say_what_the_appearance_tells(tmp_path):
    rng = np.random.default_rng(0)
    for split, first, count, height in (("train", 0, 30, 140), ("test", 100, 12, 100)):
        for number in range(first, first + count):
            tall = tmp_path / "films" / split / "NORMAL" / f"{number}.png"
            write_film(tall, 0, rng, size=(90, height))
            write_film(tmp_path / "films" / split / "PNEUMONIA" / f"p{number}.png", 0, rng)
    findings = write_audit(prepare_films(str(tmp_path / "films"), 64, tmp_path), tmp_path / "out")
    page = Page((tmp_path / "out" / "audit.html").read_text())
    assert "taller files (median 140 against 70)" in page.text
    assert ["height", "1.000", "140.0", "70.0", "taller files"] in page.tables["appearance"]
    assert summary(findings)[-2:] == audit_lines(findings["appearance"])
    assert summary(findings)[-1].endswith("expect another specificity")


def _run_folder(films, folder):
    """What a training leaves of its audit."""
    (folder / "audit").mkdir(parents=True)
    write_manifest(films, folder / "audit" / "manifest.csv")
    return folder


def test_weights_that_have_seen_test_films_are_refused_unless_allowed(faulty, tmp_path):
    first = prepare_films(str(faulty), 64, tmp_path, max_unreadable=1)
    run = _run_folder(first, tmp_path / "run")
    second = prepare_films(str(faulty), 64, tmp_path, max_unreadable=1, split="1/1/1")
    # By hand: films that judge now, and taught then; what validates now may have validated then.
    sha, was = first.store.facts["sha256"], first.split
    then = {name: {sha[row] for row in np.flatnonzero(was == name)} for name in ("train", "validation")}
    expected = sum(sha[row] in then["train"] | then["validation"] for row in second.rows("test"))
    expected += sum(sha[row] in then["train"] for row in second.rows("validation"))
    with pytest.raises(UsageError, match=f"{expected} validation and test films .* --allow_leakage") as error:
        check_leakage(second, read_seen(run), allowed=False)
    assert "\n" not in str(error.value) and expected > 0
    for weights in (run, run / "checkpoint-3"):
        assert check_leakage(second, read_seen(weights), allowed=True)["films_seen"] == expected
    assert check_leakage(second, [], allowed=False)["films_seen"] == 0


def test_going_on_with_the_same_split_is_no_leak(faulty, tmp_path):
    films = prepare_films(str(faulty), 64, tmp_path, max_unreadable=1)
    run = _run_folder(films, tmp_path / "run")
    assert len(read_seen(run)) == np.sum(np.isin(films.split, ("train", "validation")))
    assert check_leakage(films, read_seen(run), allowed=False)["films_seen"] == 0


def test_a_run_remembers_what_the_weights_before_it_had_seen(faulty, film_folder, tmp_path):
    first = _run_folder(prepare_films(str(faulty), 64, tmp_path, max_unreadable=1), tmp_path / "first")
    second = _run_folder(prepare_films(str(film_folder), 64, tmp_path), tmp_path / "second")
    write_seen(read_seen(first), second / "audit" / SEEN)
    assert len(read_seen(second)) == 105 + len(read_seen(first))


def test_a_manifest_of_an_earlier_version_knows_a_person_by_the_number_alone(film_folder, tmp_path):
    films = prepare_films(str(film_folder), 32, tmp_path)
    rows = films.rows("test")
    first = films.patient[rows] == "person200_bacteria"
    found = {"person200": first, "person200_bacteria": first, "person200_virus": first & False}
    for patient, expected in found.items():
        seen = [{"content_hash": "", "patient_id": patient}]
        assert np.array_equal(taught(films, rows, seen), expected)
    assert first.sum() == 1


def test_leakage_between_splits_would_be_seen_anew(audited, tmp_path):
    films, _, _ = audited
    row = np.flatnonzero(films.split == "test")[0]
    films.patient_id[row], kept = "IM-0005", films.patient_id[row]
    with pytest.raises(UsageError, match="leakage is left: 1 patients"):
        check_leakage(films, [], allowed=False)
    films.patient_id[row] = kept


def test_the_command_audits_what_could_not_be_trained_on(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for number in range(2):  # too few to cut a split
        write_film(tmp_path / "films" / "NORMAL" / f"{number}.png", 0, rng)
        write_film(tmp_path / "films" / "PNEUMONIA" / f"{number}.png", 1, rng)
    argv = ["audit", str(tmp_path / "films"), "--output", str(tmp_path / "out"), "--cache_dir", str(tmp_path)]
    assert run_script("hf_pneumonia", main, argv) == 0
    said = capsys.readouterr().out
    assert "4 films, sources: films" in said and "fewer than 10 patients of a class" in said
    assert (tmp_path / "out" / "manifest.csv").read_text().count("\n") == 5
    assert "Samples" in (tmp_path / "out" / "audit.html").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["/no/such/folder"], "no such folder"),
        (["phantom", "--split", "70/30"], "--split expects"),
        (["phantom", "--split", "shift"], "--split expects"),
        (["phantom", "--output", __file__], "is a file"),
        (["phantom", "--outptu", "x"], "unrecognized arguments: --outptu x; see"),
        (["phantom", "--covid", "maybe"], "invalid choice: 'maybe'"),
    ],
)
def test_a_mistake_at_the_command_is_one_line_and_exit_code_two(flags, message, tmp_path, capsys):
    argv = ["audit", "--output", str(tmp_path / "out"), "--cache_dir", str(tmp_path), *flags]
    assert run_script("hf_pneumonia", main, argv) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
    assert not (tmp_path / "out").exists()


def test_an_id_that_is_only_known_inside_its_source_proves_nothing_elsewhere():
    assert all(map(is_global_id, ["person12_virus", "person12", "IM-0115", "NORMAL2-IM-0383"]))
    assert not any(map(is_global_id, ["12", "12_virus", "train/a.png"]))
