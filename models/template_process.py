"""The process in which chat templates are rendered: a line of JSON in, a line of JSON out. Imports nothing of this package.

Memory is limited before a template is seen, files can neither be written nor opened, and no process can be started.
"""

import contextlib
import json
import sys

MEMORY = 2 * 2**30  # bytes of addresses


def main() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    largest = int(sys.argv[1])
    # A first template loads what is loaded late, while files can still be opened.
    render_jinja_template(
        [[{"role": "user", "content": "so"}]], chat_template="{{ messages | tojson }}{{ strftime_now('%Y') }}"
    )
    _limit()
    sys.stdout.write("{}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_answer(json.loads(line), render_jinja_template, largest)) + "\n")
        sys.stdout.flush()


def _answer(asked, render, largest: int) -> dict[str, str]:
    try:
        (text,), _ = render(
            conversations=[asked["messages"]],
            chat_template=asked["template"],
            add_generation_prompt=asked["answering"],
            **asked["special"],
        )
    except (Exception, RecursionError, MemoryError) as error:
        return {"error": f"{type(error).__name__}: {str(error)[:200]}"}
    if len(text) > largest:
        return {"error": f"it writes {len(text)} characters for one message, and {largest} are allowed"}
    return {"text": text}


def _limit() -> None:
    with contextlib.suppress(ImportError):  # not on Windows, where time alone is limited
        import resource

        for what, most in (("RLIMIT_AS", MEMORY), ("RLIMIT_FSIZE", 0), ("RLIMIT_NOFILE", 3), ("RLIMIT_NPROC", 0)):
            with contextlib.suppress(AttributeError, ValueError, OSError):
                resource.setrlimit(getattr(resource, what), (most, most))


if __name__ == "__main__":
    main()
