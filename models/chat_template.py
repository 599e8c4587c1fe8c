"""A user's message through a tokenizer's chat template, in bounded time and memory.

A template is a program that the checkpoint brings. One that only walks over the messages and joins texts is rendered here, by
transformers' sandbox; any other in a process of its own that has a limit of memory, no files, and so many seconds.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from transformers import PreTrainedTokenizerBase

from ..errors import PromptError

SECONDS = 5.0  # for one message
STARTING = 60.0  # for the process itself, on a machine that is busy
LARGEST = 4 * 2**20  # bytes of what is written
Message = dict[str, str]

# What can neither loop nor grow by itself.
_HARMLESS = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Const, nodes.Name, nodes.Getattr, nodes.Getitem),
    *(nodes.If, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Test, nodes.Add, nodes.Concat),
)
_FILTERS = ("trim", "upper", "lower")


def rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, answering: bool = True) -> str:
    """The messages as the tokenizer's chat template writes them, equal to `tokenizer.apply_chat_template(tokenize=False)`.

    Args:
        answering: Whether the turn of the assistant is begun.

    Raises:
        PromptError: The template cannot be rendered, or not within its limits.
    """
    template = str(tokenizer.get_chat_template())
    asked: dict[str, Any] = {"add_generation_prompt": answering, "tokenize": False}
    if not is_plain(template):
        special = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
        return _worker().render(template, list(messages), special, answering)
    try:
        return str(tokenizer.apply_chat_template(list(messages), **asked))
    except Exception as error:  # a template raises whatever it likes
        raise _broken(str(error)) from None


@lru_cache(maxsize=64)
def is_plain(template: str) -> bool:
    """Whether a template only walks over the messages, once, and joins texts that it or the messages hold."""
    try:
        parsed = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).parse(template)
    except jinja2.TemplateError:
        return False
    return all(_is_plain(node, inside=False) for node in parsed.iter_child_nodes())


def _is_plain(node: nodes.Node, *, inside: bool) -> bool:
    if isinstance(node, nodes.For):
        walked = isinstance(node.iter, nodes.Name) and node.iter.name == "messages" and not node.recursive
        if inside or not walked:
            return False
        inside = True
    elif isinstance(node, nodes.Filter):
        if node.name not in _FILTERS or node.args or node.kwargs:
            return False
    elif not isinstance(node, _HARMLESS):
        return False
    return all(_is_plain(child, inside=inside) for child in node.iter_child_nodes())


class _Worker:
    """One process that renders templates, started when it is needed and again after it was killed."""

    def __init__(self) -> None:
        self._lock, self._process, self._pid = threading.Lock(), None, 0

    def render(self, template: str, messages: list[Message], special: dict[str, str], answering: bool) -> str:
        asked = {"template": template, "messages": messages, "special": special, "answering": answering}
        with self._lock:
            answer = json.loads(self._answer(json.dumps(asked).encode() + b"\n"))
        if "error" in answer:
            raise _broken(answer["error"])
        return answer["text"]

    def stop(self) -> None:
        if self._process is not None and self._pid == os.getpid():
            self._process.kill()
            self._process.wait()
        self._process = None

    def _answer(self, asked: bytes) -> bytes:
        if self._process is None or self._pid != os.getpid():
            self._start()
        process = self._process
        assert process is not None and process.stdin is not None
        try:
            process.stdin.write(asked)
            process.stdin.flush()
            return self._line(SECONDS)
        except (OSError, PromptError):
            self.stop()
            raise _broken(f"more than {SECONDS:g} seconds or the memory of its process") from None
        except BaseException:  # interrupted half-way: what it answers next is of this message
            self.stop()
            raise

    def _start(self) -> None:
        self._pid = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("template_process.py")), str(LARGEST)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.environ.get("PATH", ""), "HF_HUB_OFFLINE": "1"},
            start_new_session=True,  # an interrupt is for us: it must not leave half an answer
        )
        try:
            self._line(STARTING)
        except PromptError:
            self.stop()
            raise PromptError("the process that renders chat templates does not start; is memory left?") from None

    def _line(self, seconds: float) -> bytes:
        process, found, ends = self._process, b"", time.monotonic() + seconds
        assert process is not None and process.stdout is not None
        descriptor = process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while not found.endswith(b"\n"):
                left = ends - time.monotonic()
                if left <= 0 or len(found) > 8 * LARGEST or not selector.select(left):
                    raise PromptError("too slow")
                part = os.read(descriptor, 2**16)
                if not part:
                    raise PromptError("it died")
                found += part
        return found


@lru_cache(maxsize=1)
def _worker() -> _Worker:
    made = _Worker()
    atexit.register(made.stop)
    return made


def _broken(reason: str) -> PromptError:
    said = " ".join(reason.split())[:200] or "no reason given"
    return PromptError(f"the tokenizer's chat template cannot be rendered ({said}); mend or drop its chat_template")
