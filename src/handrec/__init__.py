"""3D hand reconstruction with few or no 3D labels."""

__version__ = "0.1.0"
