"""Pictures from tensors: overlays, contact sheets, plots, reports, meshes."""
