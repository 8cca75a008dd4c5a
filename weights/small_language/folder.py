"""A small model as a Hugging Face folder, and its training as curves and numbers."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from matplotlib.figure import Figure
from safetensors.numpy import save

from jaxsteer.config import LlamaConfig
from jaxsteer.files import new_directory, write_atomic
from jaxsteer.huggingface import to_hf
from weights.small_language.tokenizer import BOS, EOS, PAD, save_tokenizer, vocabulary


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file, readable by people too."""
    write_atomic(path, (json.dumps(data, indent=2) + "\n").encode())


def write_model(
    folder: Path, params: Mapping[str, Any], config: LlamaConfig, *, chat: bool
) -> None:
    """Write weights (bf16), config and tokenizer; a folder of an earlier run is replaced."""
    ids = vocabulary()
    tokens = {
        "bos_token_id": ids[BOS],
        "eos_token_id": ids[EOS],
        "pad_token_id": ids[PAD],
    }
    tensors = {
        name: np.ascontiguousarray(array.astype(ml_dtypes.bfloat16))
        for name, array in to_hf(params, config).items()
    }
    with new_directory(folder, marker="config.json", overwrite=True) as building:
        write_json(building / "config.json", config.to_hf() | tokens | {"dtype": "bfloat16"})
        write_json(building / "generation_config.json", tokens | {"do_sample": True})
        save_tokenizer(building, max_length=config.max_positions, chat=chat)
        write_atomic(building / "model.safetensors", save(tensors, metadata={"format": "pt"}))


def write_curves(folder: Path, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Write `training.csv` and `training.png`.

    Args:
        folder: one seed's folder.
        curves: by model, the steps and `[points, 2]`: training and held-out loss.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["model", "step", "train_loss", "heldout_loss"])
    figure = Figure(figsize=(4 * len(curves), 3.2), layout="constrained")
    axes = figure.subplots(1, len(curves), squeeze=False)[0]
    for axis, (model, (steps, points)) in zip(axes, curves.items(), strict=True):
        for step, (train, heldout) in zip(steps, points, strict=True):
            writer.writerow([model, step, f"{train:.5f}", f"{heldout:.5f}"])
        axis.plot(steps, points[:, 0], label="training")
        axis.plot(steps, points[:, 1], label="held out")
        # The first points are far above the rest and would flatten it.
        axis.set_ylim(points.min() - 0.02, float(np.quantile(points, 0.9)) + 0.1)
        axis.set(title=model, xlabel="step", ylabel="loss, nats a token")
        axis.legend()
    write_atomic(folder / "training.csv", table.getvalue().encode())
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    write_atomic(folder / "training.png", image.getvalue())
