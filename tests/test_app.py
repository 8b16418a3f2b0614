import gradio as gr
import pytest

from app import build_page
from hf_pneumonia.inference.classifier import PneumoniaClassifier


def test_the_page_answers_with_the_classifiers_probability_and_decision(finished_run, film_folder):
    classifier = PneumoniaClassifier.from_pretrained(finished_run)
    film = str(next((film_folder / "test" / "PNEUMONIA").iterdir()))
    decision, answer = build_page(classifier).fn(film)
    expected = classifier(film)
    assert decision == expected.decision
    assert answer == {"Pneumonia": expected.probability, "Normal": 1 - expected.probability}


@pytest.mark.parametrize("film", [None, b"no film"])
def test_no_film_and_a_damaged_one_are_said_and_leave_no_traceback_in_the_log(finished_run, film, tmp_path):
    if film is not None:
        (tmp_path / "film.png").write_bytes(film)
        film = str(tmp_path / "film.png")
    with pytest.raises(gr.Error) as refusal:
        build_page(PneumoniaClassifier.from_pretrained(finished_run)).fn(film)
    assert not refusal.value.print_exception
