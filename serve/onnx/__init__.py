"""A model as ONNX graphs, and running them; `onnx_backend.py` is the way in."""
