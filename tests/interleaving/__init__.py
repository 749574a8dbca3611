"""Histories of transactions that are interleaved statement by statement on PostgreSQL; see ``explore.py``."""
