"""stories260K, a real model of 1 MB, writes what its author expects: `python -m weights.stories`.

    python -m weights.stories FOLDER

FOLDER is the model as a Hugging Face folder (karpathy/tinyllamas, MIT: width 64, 5 layers). The
text is that of the test in the author's own program, llama2.c: the most probable token 200 times
from BOS on. Exit code 0: the same text; 1: another one.
"""

import argparse

import jax
import numpy as np

import jaxsteer
from jaxsteer.runtime import guarded, run

STEPS = 200
EXPECTED = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. She "
    'said, "I want to play with your ball, but I can\'t find it."\n'
    "Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to "
    'do."\n'
    "Lily didn't want to help her mom, so she"
)


def story(folder: str) -> str:
    """What the model writes from BOS on, `STEPS` tokens."""
    model, tokenizer = jaxsteer.load(folder)
    batch = jaxsteer.left_pad([[tokenizer.bos_token_id]])
    with jax.default_matmul_precision("highest"):
        out = jaxsteer.generate(model, batch, max_new_tokens=STEPS, stop_tokens=())
    return tokenizer.decode(np.asarray(out.tokens[0]))


@guarded("stories")
def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m weights.stories")
    parser.add_argument("folder", help="stories260K as a Hugging Face folder")
    text = story(parser.parse_args(argv).folder)
    print(text)
    if text == EXPECTED:
        print(f"PASS: the text that its author expects, {STEPS} tokens")
        return 0
    same = next(i for i in range(len(EXPECTED) + 1) if text[: i + 1] != EXPECTED[: i + 1])
    print(f"FAIL: another text from letter {same} on, expected {EXPECTED[same : same + 40]!r}")
    return 1


if __name__ == "__main__":
    run(main)
