"""A model with its tokenizer: texts in, texts out."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
from tqdm import tqdm

from jaxsteer.analysis import score
from jaxsteer.decoding import sampling, think_tokens
from jaxsteer.llama import check_batch, is_abstract
from jaxsteer.models import Loaded
from jaxsteer.models import load as load_model
from jaxsteer.runtime import hosts
from jaxsteer.steering import Steering, as_tuple
from jaxsteer.sweeps import Cell, CellResult, compile_sweep, sweep
from jaxsteer.texts.cells import (
    Baseline,
    added_lengths,
    check_unit,
    in_residual_norms,
    projecting,
    sweep_cells,
)
from jaxsteer.texts.metrics import perplexity
from jaxsteer.texts.prompts import Prompt, Prompts, encode_prompts
from jaxsteer.texts.results import Text, Texts
from jaxsteer.texts.table import Table
from jaxsteer.texts.text_file import texts_in_file
from jaxsteer.texts.token_ends import projections_of, token_ends

_PATIENCE = 3.0  # seconds, after which a bar says how long a sweep takes

Steerings = (
    Steering | Sequence[Steering] | Mapping[str, Steering | Sequence[Steering] | None] | None
)


class LanguageModel(Loaded):
    """What `jaxsteer.load` gives: `model` and `tokenizer`, as which it unpacks, and texts of them.

    The pure functions (`jaxsteer.generate`, `sweep`, `forward`) take the model; the methods here
    encode prompts, choose the model's own end tokens, and decode.

    On a model of shapes, as `load` gives it to `warm`, `generate` and `sweep` compile what they
    would run, and make no texts. So does `jaxsteer.direction`, whose numbers mean nothing then.
    """

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        steering: Steerings = None,
        unit: str = "vector",
        samples: int = 1,
        max_new_tokens: int = 100,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        stop_tokens: Sequence[int] | None = None,
        bos: Any = "auto",
    ) -> Texts:
        """Continue texts, or answer conversations, under each steering.

        Args:
            prompts: a text, a conversation of `{"role": …, "content": …}`, or several of them.
            steering: what `jaxsteer.add` and the others make. Each of its rows is a cell of its
                own that runs on every prompt, so `coeff=[0, 2.5]` gives two texts per prompt.
                Several in a list act together; a dict names cells: `{"plain": None, "v": add(…)}`.
            unit: what a coefficient counts: "vector", the vector as it is, or "residual", lengths
                of the residual stream at the layer, as in `sweep`; the latter for additions alone.
            samples: texts of each prompt and cell. All cells draw the same random numbers.
            max_new_tokens: most tokens of a text.
            temperature: 0 takes the likeliest token.
            top_p: least share of probability that tokens are drawn from.
            top_k: how many of the likeliest tokens are drawn from; 0 for all.
            seed: of the samples.
            stop_tokens: ids that end a text; the model's own if not given, `()` for none.
            bos: what is put before a prompt; see `jaxsteer.encode`.

        Raises:
            ValueError: naming the argument, what was found and what was expected.
        """
        check_unit(unit)
        encoded = encode_prompts(self.tokenizer, prompts, samples=samples, bos=bos)
        drawn = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
        asked = self._asked(encoded, max_new_tokens, drawn, stop_tokens)
        cells = cells_of(steering)
        if unit == "residual":
            cells = in_residual_norms(self.model, encoded.once, cells)
        return self._run(encoded, cells, asked, {"sampling": drawn, "unit": unit})

    def sweep(
        self,
        prompts: Prompt | Sequence[Prompt],
        vectors: Any,
        *,
        layers: Sequence[int] | None = None,
        coeffs: Sequence[float],
        baselines: Sequence[Baseline] = (),
        unit: str = "vector",
        metrics: Sequence[Any] = (),
        samples: int = 1,
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        stop_tokens: Sequence[int] | None = None,
        bos: Any = "auto",
        tokens: bool = False,
        out: str | os.PathLike[str] | None = None,
    ) -> Table:
        """Run every vector × layer × coefficient on every prompt, and measure the texts.

        Args:
            prompts: as in `generate`.
            vectors: a direction (`jaxsteer.direction`, `Direction`), a vector `[D]`, or several by
                name.
            layers: layers to add at; a direction's own if not given.
            coeffs: factors. 0, where it is among them, is one cell that the others are held
                against.
            baselines: "random" for a random direction and "noise" for noise anew at each token,
                both as long as what is added.
            unit: what a coefficient counts: "vector", the vector as it is, or "residual", lengths
                of the residual stream at the layer: root mean square over the prompts' tokens,
                the first ones left out.
            metrics: functions `text → number`, such as `jaxsteer.contains("wait")`, or of a whole
                result (`jaxsteer.on_result`), such as `jaxsteer.perplexity`.
            samples: as in `generate`, and so are the rest.
            max_new_tokens: most tokens of a text.
            temperature: 0 takes the likeliest token.
            top_p: least share of probability that tokens are drawn from.
            top_k: how many of the likeliest tokens are drawn from; 0 for all.
            seed: of the samples.
            stop_tokens: ids that end a text; the model's own if not given.
            bos: what is put before a prompt.
            tokens: keep where each token ends in its text, and the stream's projection there on
                the first of the vectors, at its first layer, in lengths of the stream: what
                `Table.report` tints tokens by.
            out: a file for the texts, row by row as they are made. The same call goes on with it
                after a kill (see `jaxsteer.sweep_to_file`), and `Texts.load` reads it.

        Raises:
            ValueError: naming the argument, what was found and what was expected; also for a file
                of another sweep.
        """
        encoded = encode_prompts(self.tokenizer, prompts, samples=samples, bos=bos)
        drawn = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
        asked = self._asked(encoded, max_new_tokens, drawn, stop_tokens)
        cells = sweep_cells(
            self.model,
            encoded.once,
            vectors,
            layers=layers,
            coeffs=coeffs,
            baselines=baselines,
            unit=unit,
            seed=seed,
        )
        about = {"sampling": drawn, "unit": unit, "lengths": added_lengths(cells)}
        if tokens:
            asked["capture"] = projecting(self.model, encoded.once, vectors, layers)
        texts = self._run(encoded, cells, asked, about, out=out)
        if is_abstract(self.model):
            return Table(texts, (), tuple(metrics))
        return Table.of(self.score(texts) if perplexity in metrics else texts, metrics)

    def score(self, texts: Texts) -> Texts:
        """The same texts with `plain_logprobs`: how likely the unsteered model finds their tokens.

        Raises:
            ValueError: for texts that `generate` or `sweep` did not make.
        """
        prompts = texts.about.get("prompt_tokens")
        if prompts is None:
            raise ValueError("texts: got none with prompt_tokens, expected those of this class")
        steered = [i for i, row in enumerate(texts) if row.tokens and row.labels.get("coeff") != 0]
        read = score(self.model, [[*prompts[texts[i].prompt], *texts[i].tokens] for i in steered])
        found = {i: x[-len(texts[i].tokens) :].tolist() for i, x in zip(steered, read, strict=True)}
        rows = (
            replace(row, plain_logprobs=found.get(i, row.logprobs)) for i, row in enumerate(texts)
        )
        return Texts(tuple(rows), texts.about)

    def _asked(
        self,
        prompts: Prompts,
        max_new_tokens: int,
        drawn: Mapping[str, Any],
        stop_tokens: Sequence[int] | None,
    ) -> dict[str, Any]:
        if drawn["temperature"] == 0 and prompts.samples > 1:
            raise ValueError(
                f"samples: got {prompts.samples} at temperature 0, expected 1 (all would be equal)"
            )
        if isinstance(max_new_tokens, int):  # before samples make other numbers of the prompts
            check_batch(prompts.once, self.model.config, new_tokens=max_new_tokens)
        return {
            "max_new_tokens": max_new_tokens,
            "sampling_params": sampling(prompts.batch.tokens.shape[0], **drawn),
            "stop_tokens": tuple(self.end_tokens if stop_tokens is None else stop_tokens),
        }

    def _run(
        self,
        prompts: Prompts,
        cells: Sequence[Cell],
        asked: Mapping[str, Any],
        about: Mapping[str, Any],
        *,
        out: str | os.PathLike[str] | None = None,
    ) -> Texts:
        ends = set(asked["stop_tokens"])
        if think := think_ids(self.tokenizer):
            asked = {**asked, "think_tokens": think}
        about = {
            "model": dict(self.provenance),
            "dtype": str(self.model.dtype),
            "samples": prompts.samples,
            "prompts": prompts.rules,
            "notes": [*self.notes, *prompts.notes],
            "max_new_tokens": asked["max_new_tokens"],
            **about,
            "prompt_tokens": [prompt.ids for prompt in prompts.encoded],
        }

        if is_abstract(self.model):
            compile_sweep(self.model, prompts.batch, cells, **asked)
            return Texts((), about)

        def text_of(result: CellResult) -> Text:
            return self._text(prompts, result, ends)

        if out is not None:
            return texts_in_file(out, self.model, prompts, cells, asked, about, text_of)
        order = {id(cell): i for i, cell in enumerate(cells)}
        results = []
        rows = len(cells) * len(prompts.batch.tokens)
        quiet = not hosts.is_writer()
        with tqdm(total=rows, unit="text", delay=_PATIENCE, leave=False, disable=quiet) as bar:
            for chunk in sweep(self.model, prompts.batch, cells, **asked):
                results += chunk
                if len(results) < rows:  # after the last there is nothing to wait for
                    bar.update(len(chunk))
        results.sort(key=lambda result: (order[id(result.cell)], result.prompt))
        return Texts(tuple(map(text_of, results)), about)

    def _text(self, prompts: Prompts, result: CellResult, ends: set[int]) -> Text:
        number, sample = divmod(result.prompt, prompts.samples)
        tokens = list(result.tokens)
        ended = bool(tokens) and tokens[-1] in ends
        captured = result.captured
        return Text(
            labels=dict(result.cell.labels),
            prompt=number,
            prompt_text=prompts.encoded[number].text,
            sample=sample,
            text=self.tokenizer.decode(tokens[:-1] if ended else tokens),
            tokens=tokens,
            logprobs=list(result.logprobs),
            end="not finite" if not result.finite else "end token" if ended else "length",
            token_ends=[] if captured is None else token_ends(self.tokenizer, tokens, ended),
            projections=[]
            if captured is None
            else projections_of(captured, len(prompts.encoded[number]), len(tokens)),
            plain_logprobs=[],
        )


def load(
    source: Any, *, warm: Callable[[LanguageModel], Any] | None = None, **options: Any
) -> LanguageModel:
    """Load a model and its tokenizer: `jaxsteer.models.load`, as a `LanguageModel`.

    What is given as `warm` is compiled while weights are read:

        def work(lm): return lm.sweep(prompts, vector, layers=[8], coeffs=[0, 2], …)
        table = work(jaxsteer.load(path, warm=work))
    """

    def of(loaded: Loaded) -> LanguageModel:
        fields = Loaded.__dataclass_fields__
        return LanguageModel(**{name: getattr(loaded, name) for name in fields})

    ahead = None if warm is None else lambda loaded: warm(of(loaded))
    return of(load_model(source, warm=ahead, **options))


def think_ids(tokenizer: Any) -> tuple[int, int] | None:
    """The ids of <think> and </think>, if the tokenizer has both."""
    try:
        return think_tokens(tokenizer)
    except ValueError:
        return None


def cells_of(steering: Steerings) -> list[Cell]:
    """A cell for each row of a steering, or for each name.

    Raises:
        ValueError: for interventions of different row counts.
    """
    if isinstance(steering, Mapping):
        return [
            Cell({"name": name, **cell.labels}, cell.steering)
            for name, one in steering.items()
            for cell in cells_of(one)
        ]
    together = hosts.gather(as_tuple(steering))  # whose rows are taken without compiling
    if not together:
        return [Cell({"coeff": 0.0}, ())]
    counts = {one.coeff.shape[0] for one in together} - {1}
    if len(counts) > 1:
        raise ValueError(f"steering: got {sorted(counts)} rows, expected equally many in each")
    count = counts.pop() if counts else 1
    return [
        Cell(
            {"coeff": float(together[0].coeff[i if together[0].coeff.shape[0] > 1 else 0])},
            tuple(row_of(one, i) for one in together),
        )
        for i in range(count)
    ]


def row_of(steering: Steering, i: int) -> Steering:
    """One row of a steering; its only one, where it has one for all."""
    return jax.tree.map(lambda x: x[i : i + 1] if x.shape[0] > 1 else x, steering)
