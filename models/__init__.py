import config  # noqa: F401 - before PyTorch
