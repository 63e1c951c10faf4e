"""What `bench` runs and measures against; `bench.py` is the way in."""
