"""Official PyTorch weights to this package's parameters, one file for each system."""
