"""The tests of outbox: pure ones first, then whole stories on real databases."""

from tests.planted.planting import plant_what_is_asked_for

# Here, before any program of the tests can have imported the product: `make planted` names a fault that it shall have.
plant_what_is_asked_for()
