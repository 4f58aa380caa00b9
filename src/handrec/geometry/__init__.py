"""Rotations, cameras, Procrustes, meshes: pure functions."""
