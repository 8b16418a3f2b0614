"""Fine-tune a network on chest X-rays, know how good it is, publish it, show it."""

__version__ = "0.1.0"
__all__ = ["PneumoniaClassifier", "Prediction", "__version__"]


def __getattr__(name: str):
    # Looked up when asked for: they bring torch and transformers, seconds that the rest does without.
    if name in ("PneumoniaClassifier", "Prediction"):
        from hf_pneumonia.inference import classifier

        return getattr(classifier, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
