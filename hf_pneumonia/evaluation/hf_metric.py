"""The metrics as one `evaluate.Metric` that downloads no code from the Hub."""

import datasets
import evaluate

from hf_pneumonia.evaluation.metrics import METRICS, score_predictions


class PneumoniaMetric(evaluate.Metric):
    """All METRICS and the confusion matrix.

    `compute(predictions=..., references=..., threshold=0.5)` takes probabilities of pneumonia, 0 to 1, and
    labels, 0 or 1. An image is called pneumonia if its probability is at least the threshold. An undefined
    metric (precision without positive calls, AUROC of one class) is None.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=f"{', '.join(METRICS)} and confusion matrix; class 1, pneumonia, is positive.",
            citation="",
            inputs_description="predictions: probability of class 1. references: 0 or 1. threshold: float.",
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references, threshold: float = 0.5) -> dict:
        return score_predictions(references, predictions, threshold)
