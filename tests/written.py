"""Test doubles: a small report of train.py with distinct metrics, its config, predictions, a network."""

import itertools
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from hf_pneumonia.evaluation.metrics import METRICS
from hf_pneumonia.evaluation.scoring import Predictions

# fmt: off

SPLITS = ("train", "validation", "test")


def written_report() -> dict:
    """report.json of a run on one local folder. Metrics are 0.101, 0.102 ... in order."""
    numbers = itertools.count(101)

    def metric(**more):
        low, value, high = (next(numbers) / 1000 for _ in range(3))
        return {"value": value, "ci95": [low, high], **more}

    def split(images, patients, threshold):
        return {
            **{name: metric() for name in METRICS},
            "predictive_values": {
                name: {"prevalence": prevalence, "ppv": metric(), "npv": metric()}
                for name, prevalence in (("0.05", 0.05), ("own", next(numbers) / 1000))
            },
            "confusion_matrix": {name: 2000 + next(numbers) for name in ("tn", "fp", "fn", "tp")},
            "threshold": threshold, "films": images, "patients": patients,
        }

    def pair():
        return {"sensitivity": metric(), "specificity": metric()}

    def calibration():
        return {
            "ece": metric(if_calibrated=next(numbers) / 1000), "brier": metric(), "nll": metric(),
            "reliability": [],
        }

    def level(number):
        return {"level": number, "auroc": metric(), **pair()}

    counts = {
        name: {
            "films": 3000 + 2 * k, "patients": 2900 + k,
            "classes": {"NORMAL": 1000 + k, "PNEUMONIA": 2000 + k},
        }
        for k, name in enumerate(SPLITS, start=1)
    }

    def splits(names, threshold):
        return {name: split(counts[name]["films"], counts[name]["patients"], threshold) for name in names}

    report = {
        "splits": splits(SPLITS, 0.5),
        "operating_point": {
            "threshold": 0.8431, "target_sensitivity": 0.95, "sensitivity": 0.951, "specificity": 0.991,
            "temperature": 1.2491, "intercept": 1.4679,
            "uncertain": {"low": 0.2341, "high": 0.8521, "risk": 0.023},
            **splits(("validation", "test"), 0.8431),
        },
        "operating_points": {
            "sensitivity_90": {
                "threshold": 0.961, "target_sensitivity": 0.9, "validation": pair(), "test": pair(),
            },
            "youden": {"threshold": 0.822, "validation": pair(), "test": pair()},
        },
        "calibration": {
            "bins": 15,
            **{name: {"before": calibration(), "after": calibration()} for name in ("validation", "test")},
        },
        "checks": {
            "split": "test", "threshold": 0.8431,
            "appearance": {
                "images": 298, "threshold": 0.8431, "vertical": "NORMAL", "factor": 1.2,
                "proportions": {
                    factor: {"auroc": metric(), **pair()}
                    for factor in ("1.0", "1.1", "1.2", "1.3", "1.4", "1.5")
                },
                "histogram_and_spectrum": {"auroc": metric(), **pair()}, "appearance_auroc": metric(),
                "matched_auroc": metric(),
                "contradicting": {"images": {"NORMAL": 101, "PNEUMONIA": 201}, **pair()},
            },
            "shortcuts": {
                name: {
                    "films": 3006, "auroc": metric(),
                    "mean_probability": {"NORMAL": next(numbers) / 1000, "PNEUMONIA": next(numbers) / 1000},
                }
                for name in ("as_they_are", "lungs_blacked_out", "lungs_only")
            },
            "robustness": {
                "films": 300, "threshold": 0.8431,
                "blur": {"unit": "sigma, px at 224", "clean": 0, "levels": [level(0), level(4)]},
                "noise": {"unit": "share", "clean": 0, "levels": [level(0), level(0.1)]},
            },
            "subgroups": {
                "sources": {},
                "families": {
                    "person-virus": {
                        "films": 142, "patients": 106, "classes": {"NORMAL": 0, "PNEUMONIA": 142},
                        "sensitivity": metric(), "specificity": {"value": None, "ci95": None},
                        "auroc": {"value": 1.0, "ci95": None}, "auroc_against": "all NORMAL images",
                    }
                },
            },
            "errors": {
                "test": {"films": 3006, "miss": 41, "false_alarm": 42, "suspected_label_error": 43},
                "validation": {"films": 3004, "miss": 44, "false_alarm": 45, "suspected_label_error": 46},
            },
        },
        "recipe": {
            "dataset": ["/home/somebody/images"], "model": "resnet18.a1_in1k", "pretrained": "false",
            "image_size": 64, "split": "official", "split_seed": 7, "num_train_epochs": 11.0,
            "max_steps": -1, "per_device_train_batch_size": 33, "gradient_accumulation_steps": 1,
            "optim": "adamw_torch", "adam_l2": False, "learning_rate": 0.0012, "weight_decay": 0.052,
            "lr_scheduler_type": "cosine", "lr_step_epochs": 0, "warmup_steps": 0.12, "layer_decay": 0.75,
            "metric_for_best_model": "auroc", "rotation": [5.0, 6.0], "ema_decay": 0.0, "imbalance": "none",
            "bf16": True, "fp16": False, "run_name": "of somebody",
        },
        "seed": 17,
        "data": {
            "source": "films", "simulated": False, "splits": counts, "sources": {"films": 9018},
            "left_out": 6,
            "removed": {
                "unreadable": 2, "copy": 6, "copies with different labels": 4,
                "patient of another split": 3,
            },
            "unreadable": [
                {"file": "/home/somebody/images/train/NORMAL/bad1.jpeg", "reason": "empty file"},
                {"file": "/home/somebody/images/train/NORMAL/bad2.jpeg", "reason": "No such file: '/home/x'"},
            ],
            "notes": ["validation cut from the training patients: 3004 images of 2902 patients"],
            "split_sha256": "5" * 64, "leakage": {"patients": 0, "duplicate_groups": 0, "films_seen": 0},
        },
        "audit": {
            "films": 9031, "sources": {"films": 9031},
            "duplicates": {
                "groups": 51, "films": 52, "groups_of_equal_bytes": 53, "pairs_by_pixels": 54,
                "groups_across_sources": 55,
            },
            "conflicting_labels": [["/home/somebody/images/a1.jpeg", "/home/somebody/images/b2.jpeg"]],
            "leakage": {
                "as_given": {"patients_fine": 61, "patients_coarse": 62, "duplicate_groups": 63},
                "as_used": {"patients_fine": 0, "patients_coarse": 0, "duplicate_groups": 0},
            },
            "overlays": {"text": {"NORMAL": 64, "PNEUMONIA": 65}, "colour": {"NORMAL": 66, "PNEUMONIA": 67}},
            "searched_for_text": 68, "blank": 69, "balance": {},
            "label_told_by": {"source": 0.5, "height of the file": 0.903},
            "appearance": {
                "images": 8031, "auroc": metric(),
                "statistics": [
                    {
                        "statistic": "height", "auroc": 0.904,
                        "median": {"NORMAL": 1328.0, "PNEUMONIA": 792.0}, "words": "taller files",
                    }
                ],
                "test_against_train": {"NORMAL": metric(), "PNEUMONIA": metric()},
            },
        },
        "history": [], "kept_epoch": 9.0, "training_seconds": 654.3,
        "versions": {"torch": "2.15.0", "timm": "1.0.31"}, "device": "CPU (2 cores)", "processes": 1,
    }
    report["audit"] |= {name: report["data"][name] for name in ("removed", "unreadable")}
    return report


def written_config() -> dict:
    """config.json of the run: the keys that the model card reads."""
    return {
        "architecture": "resnet18",
        "pneumonia": {
            "threshold": 0.8431, "leakage_allowed": False,
            "uncertain": {"low": 0.2341, "high": 0.8521, "risk": 0.023},
        },
        "pretrained_cfg": {
            "input_size": [3, 64, 64], "interpolation": "bicubic", "mean": [0.449] * 3, "std": [0.226] * 3,
        },
    }


def written_manifest() -> dict:
    """Summary of the manifest of the run."""
    counts = {"NORMAL": {"films": 71, "patients": 72}, "PNEUMONIA": {"films": 73, "patients": 74}}
    return {
        "films": 9031, "sources": {"films": {"kind": "local", "splits": {"train": counts}}}, "removed": {},
        "copies": {"groups": 51, "films": 52},
        "patients_known_by": {"file name": 81, "source": 82, "nothing": 83}, "seen_before": 0,
        "split_sha256": "5" * 64, "manifest_sha256": "6" * 64,
    }


def predicted(labels, probabilities, patients=None) -> Predictions:
    """Predictions of images named by number; by default each is of another patient."""
    names = [str(number) for number in range(len(labels))]
    return Predictions(names, list(patients or names), np.array(labels, int), np.array(probabilities, float))


class Network(nn.Module):
    """A network whose margin is the number that `read` returns for (n, s, s) inputs."""

    def __init__(self, read):
        super().__init__()
        self.slope, self.read = nn.Parameter(torch.ones(())), read

    def forward(self, inputs):
        margin = self.slope * self.read(inputs[:, 0])
        return SimpleNamespace(logits=torch.stack([torch.zeros_like(margin), margin], 1))
