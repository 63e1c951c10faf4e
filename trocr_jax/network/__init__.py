"""The network's parts, which `model.py` puts together."""
