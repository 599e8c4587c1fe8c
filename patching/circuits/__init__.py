"""The smallest part of a model that carries a behaviour, held against random parts, and what each member of it does."""

from .circuit import Circuit
from .kept import Kept
from .kept_edges import KeptEdges
from .places import Edge, Place
from .search import find_circuit
from .story import Story, tell

__all__ = ["Circuit", "Edge", "Kept", "KeptEdges", "Place", "Story", "find_circuit", "tell"]
