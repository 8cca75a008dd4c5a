"""Render chat templates, one per line of JSON, until there are no more: started by `chat`.

A template is a program that came with a model. Here it has its own process, which may not grow by
more than a gigabyte and is killed by its parent when it takes too long.
"""

import json
import os
import sys
from typing import Any

_MEMORY = 1 << 30  # bytes beyond what is in use before the first template
_LONGEST = 10_000_000  # characters of a rendered text


def _answer(asked: dict[str, Any]) -> dict[str, str]:
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        (text,), _ = render_jinja_template(
            [asked["messages"]],
            chat_template=asked["template"],
            add_generation_prompt=asked["add_generation_prompt"],
            **asked["variables"],
        )
        if len(text) > _LONGEST:
            return {"error": f"it writes {len(text):,} characters, expected {_LONGEST:,} at most"}
        return {"text": text}
    except MemoryError:
        return {"error": f"it takes more than {_MEMORY:,} bytes of memory"}
    except Exception as error:  # a template may raise anything
        return {"error": f"{type(error).__name__}: {str(error)[:1000]}"}


def _limit_memory() -> None:
    try:
        import resource

        with open("/proc/self/statm") as file:
            most = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    except (ImportError, OSError, ValueError):  # not on Linux: the time is bounded there, alone
        pass


def main() -> None:
    """Answer until standard input ends; the first line written says that all is imported."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # seconds, and not needed here
    out, sys.stdout = sys.stdout, sys.stderr
    from transformers.utils import chat_template_utils  # noqa: F401

    _limit_memory()
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
