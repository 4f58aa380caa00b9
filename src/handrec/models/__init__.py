"""Backbones, heads and the reconstructor they make."""
