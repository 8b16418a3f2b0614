"""Prediction: classifier, OOD check, batch scoring and ONNX export."""
