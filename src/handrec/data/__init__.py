"""Data modules: every data set as HandBatch."""
