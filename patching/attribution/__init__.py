"""What patching would find, estimated by gradients: every node or edge at once."""

from .edges import attribute_edges, node_scores
from .nodes import attribute

__all__ = ["attribute", "attribute_edges", "node_scores"]
