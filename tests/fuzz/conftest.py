"""About 10,000 hostile inputs in every run; `STABILIZE_FUZZ=20 pytest tests/fuzz` looks at twenty times as many."""
