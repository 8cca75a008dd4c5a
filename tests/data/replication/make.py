"""Write the excerpt in this folder: made-up data in the shape of the replication's files.

    python tests/data/replication/make.py

The texts are ours. The counts beside them were counted by hand, so that the tests compare the
metric with something other than itself.
"""

import gzip
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).parent

PROMPTS = [
    ("counting_000", "counting", "How many even numbers lie between 1 and 9?", "dom"),
    ("geometry_000", "geometry", "A square has the area 49. How long is its side?", "dom"),
    ("counting_001", "counting", "How many weeks are 21 days?", "eval"),
    ("geometry_001", "geometry", "What is the perimeter of a square of side 3?", "eval"),
]

TRACES = [
    "Okay, even numbers between 1 and 9. They are 2, 4, 6 and 8.\n\nWait, does 9 count? No.\n"
    "So it is 4.\n</think>\n\nThere are **4** even numbers.",
    "The area is \\( s^2 = 49 \\). Hmm, so:\n\n\\[\ns = \\sqrt{49} = 7.\n\\]\n\n1. The side is 7.\n"
    "2. It is not -7.\n\nI think",
    "A week has 7 days, so 21 / 7 = 3.0, i.e. 3 weeks.\n</think>\n\n3",
    "Four sides of 3... That is 12",
]

# (text, keywords in it, words in it), counted by hand.
PLAIN = ("So it is 3.", 0, 4)
SOME = ("It is 3. Wait, let me check: 7 + 7 + 7 is 21.", 1, 14)
LOUD = ("Wait. wait! Hmm... I await the hmm-wait; WAIT", 6, 8)
STUCK = ("hmm so it is hmm so it is hmm so it is", 3, 12)
EMPTY = ("", 0, 0)

# For each target and source: the two held-out prompts' texts at the magnitudes -8, 0 and 8.
CELLS = {
    ("base", "base_derived_union"): [EMPTY, EMPTY, PLAIN, EMPTY, EMPTY, PLAIN],
    ("base", "reasoning_derived_union"): [EMPTY, EMPTY, PLAIN, EMPTY, EMPTY, EMPTY],
    ("reasoning", "base_derived_union"): [PLAIN, PLAIN, PLAIN, SOME, LOUD, SOME],
    ("reasoning", "reasoning_derived_union"): [PLAIN, SOME, PLAIN, SOME, LOUD, STUCK],
}


def steering_rows() -> list[dict]:
    rows = []
    for (target, source), texts in CELLS.items():
        for i, (text, wait_count, n_words) in enumerate(texts):
            prompt, category, _, _ = PROMPTS[2 + i % 2]
            row = {
                "target": target,
                "source": source,
                "magnitude": (-8.0, 0.0, 8.0)[i // 2],
                "prompt_id": prompt,
                "category": category,
                "keyword_rate": wait_count / n_words if n_words else 0.0,
                "n_words": n_words,
                "wait_count": wait_count,
                "text": text,
            }
            rows.append(row)
    return rows


def directions() -> dict[str, np.ndarray]:
    """Directions whose unions are (5, 0, 0, 0) and (4, 3, 0, 0): their cosine is 0.8."""
    tensors = {}
    for model, union in {"base": (5, 0, 0, 0), "reasoning": (4, 3, 0, 0)}.items():
        for i, offset in enumerate(range(-13, -7)):
            tensors[f"{model}.offset.{offset}"] = np.add(union, (0, 0, 2 * i - 5, 0))
        tensors[f"{model}.offset.0"] = np.array((0, 0, 0, 1))
        tensors[f"{model}.union"] = np.array(union)
    return {name: vector.astype(np.float32) for name, vector in tensors.items()}


def main() -> None:
    fields = ("id", "category", "prompt", "split")
    prompts = [dict(zip(fields, prompt, strict=True)) for prompt in PROMPTS]
    traces = []
    for prompt, text in zip(prompts, TRACES, strict=True):
        trace = {"question_id": prompt["id"], "category": prompt["category"]}
        trace |= {"prompt": prompt["prompt"], "full_response": text}
        thinking = text.split("</think>")[0].strip()
        traces.append(trace | {"thinking_process": thinking, "answer": "", "answer_index": -1})
    meta = {"layer": 10, "magnitudes": [-8.0, 0.0, 8.0], "n_eval_prompts": 2}
    write_json("prompts.json", prompts)
    write_json("traces.json.gz", traces)
    write_json("steering_results.json.gz", {"rows": steering_rows(), "meta": meta})
    header = {
        "layer": "10",
        "site": "resid_post (output of block 10, 0-based)",
        "union_offsets": "-13,-12,-11,-10,-9,-8",
        "n_sentences": "24",
        "n_backtracking": "2",
    }
    save_file(directions(), HERE / "dom_layer10.safetensors", metadata=header)


def write_json(name: str, content: object) -> None:
    data = json.dumps(content, indent=1, ensure_ascii=False).encode()
    # Without a time stamp the compressed bytes are the same each time.
    (HERE / name).write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)


if __name__ == "__main__":
    main()
