"""The evidence: metrics, calibration, report and plots."""
