"""Dangerous single changes of the engine: each is made in a copy, and the tests that it names must fail there."""
