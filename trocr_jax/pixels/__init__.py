"""From an RGB image to the pixels of a model."""
