"""What patching would find, estimated by gradients: every node or edge at once."""

from .edges import estimate_edges, node_scores
from .nodes import estimate

__all__ = ["estimate", "estimate_edges", "node_scores"]
