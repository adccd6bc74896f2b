"""How annotations are checked as the program runs; .ci/run says when."""

from beartype import BeartypeConf, beartype

# An int is a float, as PEP 484 has it.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
