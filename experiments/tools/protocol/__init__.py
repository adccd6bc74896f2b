"""A result in a given time, compared with diffusers': see ``__main__``."""
