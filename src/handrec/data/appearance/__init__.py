"""What synthetic pictures look like: one file per appearance domain."""
