"""Image quality measures, each with its convention in name or argument."""
