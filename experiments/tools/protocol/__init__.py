"""A result in a given time, beside diffusers' in the same: ``__main__``."""
