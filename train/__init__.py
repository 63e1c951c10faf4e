"""Training: data, synthesis, augmentation, step, loop, checkpoints, evaluation (installed as trocr_jax.train)."""
