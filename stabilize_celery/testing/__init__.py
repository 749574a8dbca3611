"""What users test their workflows with.

``plugin`` is loaded by every pytest run; ``simulate`` runs workflows under simulated faults.
"""

from __future__ import annotations
