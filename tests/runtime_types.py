"""The checker that the tests switch on for shapes and types; see `conftest.py`."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float
