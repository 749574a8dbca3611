"""The parts of a unit of work, each on top of the one before: what it writes, what it loads, what it sends."""
