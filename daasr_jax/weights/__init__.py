"""Weights from elsewhere to arrays: ImageNet networks, official weights of systems."""
