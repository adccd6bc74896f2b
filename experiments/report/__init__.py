"""A page that shows a run; see ``__main__``."""
