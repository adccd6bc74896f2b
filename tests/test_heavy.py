"""The list of heavy tests names tests that exist."""

import pathlib
import re

import heavy

ROOT = pathlib.Path(__file__).parents[1]


def test_what_is_listed_is_a_test():
  for name in {listed.partition("[")[0] for listed in heavy.listed()}:
    file, _, function = name.partition("::")
    defined = rf"^def {function}\("
    assert re.search(defined, (ROOT / file).read_text(), re.MULTILINE), name
