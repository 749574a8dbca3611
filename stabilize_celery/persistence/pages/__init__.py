"""What a page that shows workflows reads.

Every statement is bounded, whatever is in the database: lists are pages, counts stop at a limit, and a graph is read
without the contexts and outputs of its stages.
"""

from __future__ import annotations
