from app import build_page
from hf_pneumonia.inference.classifier import PneumoniaClassifier


def test_the_page_answers_with_the_classifiers_probability_and_decision(finished_run, film_folder):
    classifier = PneumoniaClassifier.from_pretrained(finished_run)
    film = str(next((film_folder / "test" / "PNEUMONIA").iterdir()))
    decision, answer = build_page(classifier).fn(film)
    expected = classifier(film)
    assert decision == expected.decision
    assert answer == {"Pneumonia": expected.probability, "Normal": 1 - expected.probability}
