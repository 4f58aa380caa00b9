"""The hand itself: models, joint names and orders, anatomy."""
