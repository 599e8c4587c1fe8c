"""What patching would find, estimated by gradients: every node or edge at once, and how far the estimates can be trusted."""

from .agreement import Agreement, verify
from .edges import attribute_edges, node_scores
from .nodes import attribute

__all__ = ["Agreement", "attribute", "attribute_edges", "node_scores", "verify"]
