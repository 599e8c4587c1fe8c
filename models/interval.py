"""A measured figure with its uncertainty, as every room reports it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A figure with its 95% interval over `n` groups."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}] n={self.n}"

    @property
    def signed(self) -> str:
        """As a difference, without `n`, for tables that give it elsewhere."""
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"
