"""Weight conversion: hub, fairseq and Orbax checkpoints in, hub and Orbax directories out; warm starts; verification."""
