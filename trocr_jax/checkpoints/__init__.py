"""What lies in checkpoint files and how it becomes parameters and back; `pretrained.py` is the way in."""
