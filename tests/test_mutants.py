"""The faults of tests/mutants.py still name what is in the tree."""

import pathlib

import mutants
import pytest


@pytest.mark.parametrize("name", mutants.MUTANTS)
def test_a_fault_is_one_change(name):
  fault = mutants.MUTANTS[name]
  text = (mutants.ROOT / fault.file).read_text()
  assert text.count(fault.right) == 1 and fault.right != fault.wrong
  for word in fault.tests.split():
    if word.endswith(".py"):
      assert (mutants.ROOT / word).is_file()


def test_every_room_has_its_faults():
  files = {fault.file for fault in mutants.MUTANTS.values()}
  rooms = {pathlib.Path(file).parts[:2] for file in files}
  assert len(mutants.MUTANTS) >= 60 and len(files) >= 30 and len(rooms) >= 25
