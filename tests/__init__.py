"""The tests of outbox: pure ones first, then whole stories on real databases."""
