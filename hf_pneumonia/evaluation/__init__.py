"""Evaluation: metrics, calibration, checks, audit, report and plots."""
