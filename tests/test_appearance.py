import numpy as np
import pytest
from scipy import ndimage, signal
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from hf_pneumonia.data.appearance import STATISTICS, appearance_scores, measure_appearance, vertical_class

IMMERKAER = [[1, -2, 1], [-2, 4, -2], [1, -2, 1]]


def _reference(square, width, height):
    """Compute every statistic by its definition."""
    gray, size = square / 255, len(square)
    found = {"width": width, "height": height, "log(width / height)": np.log(width / height)}
    found |= {"brightness": gray.mean(), "contrast": gray.std()}
    for percent in (1, 5, 25, 50, 75, 95, 99):
        found[f"quantile {percent}%"] = min(
            g / 255 for g in range(256) if 100 * np.sum(square <= g) >= percent * size**2
        )
    strip = max(1, round(0.05 * size))
    found |= {"top border": gray[:strip].mean(), "bottom border": gray[size - strip :].mean()}
    found |= {"left border": gray[:, :strip].mean(), "right border": gray[:, size - strip :].mean()}
    found["vertical sharpness"] = np.mean([abs(gray[y + 1] - gray[y]) for y in range(size - 1)])
    found["horizontal sharpness"] = np.mean([abs(gray[:, x + 1] - gray[:, x]) for x in range(size - 1)])
    filtered = signal.convolve2d(gray, IMMERKAER, mode="valid")
    found["noise"] = np.sqrt(np.pi / 2) / 6 * np.abs(filtered).sum() / (size - 2) ** 2
    for row in range(6):
        for column in range(6):
            down = slice(row * size // 6, (row + 1) * size // 6)
            across = slice(column * size // 6, (column + 1) * size // 6)
            found[f"cell {row + 1},{column + 1}"] = gray[down, across].mean()
    return found


@pytest.mark.parametrize("size", [6, 50])
def test_every_statistic_agrees_with_its_definition(size):
    rng = np.random.default_rng(size)
    square = (ndimage.gaussian_filter(rng.random((size, size)), 1) * 255).astype(np.uint8)
    expected = _reference(square, 1328, 792)
    found = measure_appearance(square, 1328, 792)
    assert found.dtype == np.float64 and tuple(expected) == STATISTICS
    assert dict(zip(STATISTICS, found, strict=True)) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_vertical_sharpness_alone_separates_classes_that_differ_in_it():
    rng = np.random.default_rng(0)
    label = np.arange(100) % 2
    images = [ndimage.gaussian_filter(rng.random((48, 48)), (3 if one else 1.5, 1.5)) for one in label]
    statistics = np.stack([measure_appearance((255 * image).astype(np.uint8), 48, 48) for image in images])
    assert roc_auc_score(label, appearance_scores(statistics, label, np.arange(100))) > 0.99
    sharpness = statistics[:, STATISTICS.index("vertical sharpness")]
    assert sharpness[label == 0].min() > sharpness[label == 1].max()
    assert vertical_class(statistics, label) == 0 and vertical_class(statistics, 1 - label) == 1


@pytest.fixture
def clouds():
    """(120, 5) statistics that overlap, their labels, and patients of two images each."""
    rng = np.random.default_rng(1)
    label = np.arange(120) // 2 % 2
    patient = np.array([f"p{number // 2:02d}" for number in range(120)])
    return rng.normal(size=(120, 5)) + label[:, None], label, patient


def test_an_image_is_scored_by_a_regression_on_the_patients_of_the_other_folds(clouds):
    statistics, label, patient = clouds
    found = appearance_scores(statistics, label, patient)
    changed = statistics.copy()
    changed[0] += 5  # within its fold this changes no other score, not even of the patient's other image
    fold = np.isclose(found, appearance_scores(changed, label, patient), rtol=1e-9, atol=0)
    assert fold.tolist()[:2] == [False, True] and fold.sum() == 120 / 5 - 1
    fold[0] = True
    mean, spread = statistics[~fold].mean(0), statistics[~fold].std(0)
    regression = LogisticRegression(class_weight="balanced", max_iter=2000)
    regression.fit((statistics[~fold] - mean) / spread, label[~fold])
    expected = regression.intercept_ + ((statistics[fold] - mean) / spread) @ regression.coef_[0]
    assert found[fold] == pytest.approx(expected, abs=1e-3)


def test_scores_depend_on_the_seed_and_not_on_the_order_of_the_images(clouds):
    statistics, label, patient = clouds
    label = label.copy()
    label[[0, 5]] ^= 1  # two patients with images of both classes
    found = appearance_scores(statistics, label, patient, seed=3)
    order = np.random.default_rng(0).permutation(120)
    shuffled = appearance_scores(statistics[order], label[order], patient[order], seed=3)
    assert shuffled == pytest.approx(found[order], abs=1e-3)
    assert not np.allclose(found, appearance_scores(statistics, label, patient, seed=4), atol=1e-3)
