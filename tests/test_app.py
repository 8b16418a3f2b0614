from app import build_page
from hf_pneumonia.inference.classifier import PneumoniaClassifier


def test_the_page_answers_with_the_classifiers_probability(finished_run, film_folder):
    classifier = PneumoniaClassifier.from_pretrained(str(finished_run))
    film = str(next((film_folder / "test" / "PNEUMONIA").iterdir()))
    answer = build_page(classifier).fn(film)
    probability = classifier(film).probability
    assert answer == {"Pneumonia": probability, "Normal": 1 - probability}
