"""Training character models: the model, the loop, checkpoints, the run folder, sampling: one module each."""
