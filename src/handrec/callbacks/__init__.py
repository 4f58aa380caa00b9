"""What happens around training: pictures, reports, prediction files."""
