"""SkipUpdate and Magma, written once against the Python Array API standard."""

from magma_core.bases import state_fields
from magma_core.blocks import Axes, Blocks, cut
from magma_core.config import (
    SGD,
    Adam,
    AdamW,
    Base,
    LaProp,
    RMSProp,
    Rule,
    damping,
    dense,
    magma,
    score_survival,
    skip_update,
)
from magma_core.namespace import Array, Namespace
from magma_core.plan import Plan, plan_all
from magma_core.state import Alignment, Report, State
from magma_core.state_file import Saved, read_state, write_state
from magma_core.step import update_planned
from magma_core.update import init, update, update_all

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Alignment",
    "Array",
    "Axes",
    "Base",
    "Blocks",
    "LaProp",
    "Namespace",
    "Plan",
    "RMSProp",
    "Report",
    "Rule",
    "Saved",
    "State",
    "__version__",
    "cut",
    "damping",
    "dense",
    "init",
    "magma",
    "plan_all",
    "read_state",
    "score_survival",
    "skip_update",
    "state_fields",
    "update",
    "update_all",
    "update_planned",
    "write_state",
]
__version__ = "0.1.0"
