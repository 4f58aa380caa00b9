"""Differentiable rasterization and shading."""
