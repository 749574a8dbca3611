"""A Django app for these tests."""
