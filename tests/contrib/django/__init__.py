"""The engine within a Django project."""
