"""Fine-tune a network on chest X-rays, know how good it is, publish it, show it."""

__version__ = "0.1.0"
