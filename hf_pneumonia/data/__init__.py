"""Data: images, labels, patients, splits and where they come from."""
