"""Where a result draws itself: on the axes that it is given, or on new ones."""

from matplotlib.axes import Axes


def axes_of(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """`ax`, or new axes of a figure of this size in inches. matplotlib.pyplot is loaded only then."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]
