"""Scripts: thin programs around the library. Run with python -m."""

from experiments import streams

streams.fill()
