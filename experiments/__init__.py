"""Scripts: thin programs around the library. Run with python -m."""
