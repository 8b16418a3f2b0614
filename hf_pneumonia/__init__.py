"""Fine-tune a network on chest X-rays, know how good it is, publish it, show it."""

from hf_pneumonia.registration import register_networks

__version__ = "0.1.0"

register_networks()
