"""The simulated films: reproducible, and free of shortcuts."""

import numpy as np

from hf_pneumonia.data import phantom

SIZE = 96
PATIENTS = range(1, 17)


def sick_and_healthy(patient):
    """Each film of a patient with pneumonia, beside the same film without it."""
    sick = phantom._films(patient, 0, SIZE, sick=True)
    return zip(sick, phantom._films(patient, 0, SIZE, sick=False), strict=True)


def test_the_same_seed_gives_the_same_bytes_in_any_order():
    first = {patient: phantom.simulate_patient(patient, 3, SIZE) for patient in (1, 2, 3)}
    for patient in (3, 1, 2):
        for a, b in zip(first[patient], phantom.simulate_patient(patient, 3, SIZE), strict=True):
            assert a.image.tobytes() == b.image.tobytes() and a.lesion.tobytes() == b.lesion.tobytes()


def test_another_seed_gives_other_patients():
    a, b = (phantom.simulate_patient(1, seed, SIZE)[0].image for seed in (0, 1))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] < 0.999


def test_films_have_the_promised_shapes_and_types():
    for film in phantom.simulate_patient(2, size=SIZE):
        assert film.image.shape == film.lesion.shape == (SIZE, SIZE)
        assert film.image.dtype == np.uint8 and film.lesion.dtype == bool
        assert film.patient_id == "phantom0002"


def test_a_normal_film_has_no_lesion_and_a_film_with_pneumonia_has_one():
    for patient in PATIENTS:
        for film in phantom.simulate_patient(patient, size=SIZE):
            assert film.lesion.any() == (film.label == "PNEUMONIA") == (film.pattern != "none")


def test_one_patient_of_each_pair_has_pneumonia():
    sick = [phantom._is_sick(patient, 0) for patient in range(1, 201)]
    assert all(a != b for a, b in zip(sick[::2], sick[1::2], strict=True))
    assert 30 < sum(sick[::2]) < 70, "whether the odd number of a pair is the sick one must not be a rule"


def test_the_lesion_lies_inside_a_lung():
    for patient in PATIENTS:
        anatomy, disease, _ = np.random.default_rng((0, patient)).spawn(3)
        chest, _, lung = phantom._anatomy(anatomy, SIZE)
        _, opacity = phantom._disease(disease, chest, lung)
        assert opacity.max() > 0 and lung[opacity > 0].min() > 0.5  # cm


def test_the_lesion_region_is_brighter_than_the_same_film_without_it():
    for patient in PATIENTS:
        for sick, healthy in sick_and_healthy(patient):
            assert sick.image[sick.lesion].mean() > healthy.image[sick.lesion].mean() + 1


def test_all_but_the_lesion_is_independent_of_the_label():
    for patient in PATIENTS:
        for sick, healthy in sick_and_healthy(patient):
            np.testing.assert_array_equal(sick.image[~sick.lesion], healthy.image[~sick.lesion])
