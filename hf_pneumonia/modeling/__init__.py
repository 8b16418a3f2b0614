"""The network, its input and its augmentation."""
