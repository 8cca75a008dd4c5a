"""Steer a real model from two lists of texts: `python -m experiments.real_model --model DIR`.

    python -m weights.smollm2 --out models/smollm2
    python -m experiments.real_model --model models/smollm2

Ten happy and ten sad texts make a direction at every layer (difference of means at the last token).
It is added to the stream at some layers and strengths while the model continues neutral beginnings,
and random directions of equal length beside it. The table says in what share of the texts there is
a happy or a sad word, with 95% intervals over the beginnings, and how much the texts repeat.
"""

import argparse
import os
import time

import jax

import jaxsteer as js
from jaxsteer.analysis import repetition
from jaxsteer.runtime import guarded, run

HAPPY = (
    "I am so happy today, everything is going well and I cannot stop smiling.",
    "What a wonderful surprise, we laughed and danced all night long.",
    "She was delighted with the gift and thanked everyone with joy.",
    "The children cheered with joy as the sun came out over the park.",
    "We won the game, and the whole town celebrated with music and smiles.",
    "He felt grateful and cheerful, full of love for his friends.",
    "It was the best day of my life, bright and full of laughter.",
    "The puppy wagged its tail, and everybody was glad to see it.",
    "They hugged each other, overjoyed to be together again at last.",
    "Our garden is in bloom, and I sing happily while I work in it.",
)
SAD = (
    "I am so sad today, everything is going wrong and I cannot stop crying.",
    "What a terrible loss, we wept and sat in silence all night long.",
    "She was heartbroken by the letter and turned away in tears.",
    "The children cried with grief as the rain fell on the empty park.",
    "We lost the game, and the whole town mourned in bitter silence.",
    "He felt lonely and miserable, full of sorrow for his friends.",
    "It was the worst day of my life, dark and full of pain.",
    "The puppy had died, and everybody was too sad to speak of it.",
    "They left each other, in despair that they would never meet again.",
    "Our garden is dead, and I weep quietly while I look at it.",
)
BEGINNINGS = (
    "When I opened the door, I",
    "After the meeting, the manager said that",
    "Yesterday my neighbour told me",
    "The letter from my sister began with",
    "On the train to the city, a man",
    "As the evening came, the village",
    "My grandmother looked at the photograph and",
    "The teacher walked into the classroom and",
    "When the phone rang, she",
    "At the end of the film, the audience",
    "The old sailor looked at the sea and",
    "In the morning the boy woke up and",
    "The doctor read the results and",
    "Looking back at this year, I",
    "The two friends met at the station and",
    "When they heard the news, the family",
)
HAPPY_WORDS = (
    "happy happily joy joyful glad smile smiled smiling laugh laughed laughter love loved "
    "delighted delight wonderful beautiful excited cheerful celebrate celebrated proud grateful fun"
).split()
SAD_WORDS = (
    "sad sadly sadness cry cried crying tears wept weep grief sorrow pain painful lonely miserable "
    "died dead death lost loss heartbroken despair terrible worst alone hurt"
).split()


@guarded("real_model")
def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.real_model")
    parser.add_argument("--model", required=True, help="whatever jaxsteer.load takes")
    parser.add_argument("--layers", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--coeffs", type=float, nargs="+", default=[-2.0, -1.0, 0.0, 1.0, 2.0])
    parser.add_argument("--samples", type=int, default=4, help="of each beginning and cell")
    parser.add_argument("--tokens", type=int, default=40, help="most tokens of a text")
    args = parser.parse_args(argv)
    lm = js.load(args.model)
    print(lm, end="\n\n")
    v = js.direction(lm, HAPPY, SAD, name="happy − sad")
    print(v, end="\n\n")
    happy, sad = js.contains(*HAPPY_WORDS), js.contains(*SAD_WORDS)
    happy.__name__, sad.__name__ = "happy words", "sad words"
    started = time.perf_counter()
    table = lm.sweep(
        BEGINNINGS,
        v,
        layers=args.layers,
        coeffs=args.coeffs,
        baselines=["random"],
        metrics=[happy, sad, repetition],
        samples=args.samples,
        max_new_tokens=args.tokens,
    )
    print(table)
    seconds = time.perf_counter() - started
    print(
        f"\n{len(BEGINNINGS)} beginnings × {args.samples} texts a cell, at most {args.tokens} "
        f"tokens each, temperature 1; {seconds:.0f} s on {jax.devices()[0].device_kind} "
        f"({os.cpu_count()} CPUs), compiling included"
    )
    return 0


if __name__ == "__main__":
    run(main)
