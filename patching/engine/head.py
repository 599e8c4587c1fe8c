"""The unembedding of some vocabulary entries alone, for metrics that read no others."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...models.view import Make


def head_of(model: PreTrainedModel, tokens: Int[Tensor, "token"]) -> dict[str, Make] | None:
    """For `view`: the model's last projection with these rows only; None where it is no plain linear layer."""
    head = model.get_output_embeddings()
    name = next((name for name, module in model.named_modules() if module is head), None)
    if name is None or type(head) is not nn.Linear:
        return None
    chosen = tokens.to(head.weight.device)
    rows = _Rows(head.weight[chosen], None if head.bias is None else head.bias[chosen])
    return {name: lambda _: rows}


class _Rows(nn.Module):
    weight: Float[Tensor, "token d_model"]
    bias: Float[Tensor, "token"] | None

    def __init__(self, weight: Float[Tensor, "token d_model"], bias: Float[Tensor, "token"] | None):
        super().__init__()
        self.__dict__ |= {"weight": weight, "bias": bias}

    def forward(self, hidden: Float[Tensor, "*at d_model"]) -> Float[Tensor, "*at token"]:
        return nn.functional.linear(hidden, self.weight, self.bias)
