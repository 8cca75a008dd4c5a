"""How a problem is put to each model, and the special tokens that the base model has never seen.

A problem is put in one of two forms, a setting for either model (`prompts.base_format`,
`prompts.reasoning_format`), which every result names:

- "chat": the chat template of the reasoning model's tokenizer, with its generation prompt. The base
  model, if it is given this form, reads the same ids.
- "continuation": `prompts.base_template`, text that a base model goes on with, behind the
  begin-of-sequence token if the model was trained with one (`jaxsteer.encode` has the rule). No
  other special token is in it.

Llama-3.1-8B and DeepSeek-R1-Distill-Llama-8B share the 128,000 ordinary tokens; of the 256 special
ones these mean something to the second only, and the first has untrained embeddings for them:

    id       DeepSeek-R1-Distill-Llama-8B   Llama-3.1-8B
    128011   <｜User｜>                     <|reserved_special_token_3|>
    128012   <｜Assistant｜>                <|reserved_special_token_4|>
    128013   <think>                        <|reserved_special_token_5|>
    128014   </think>                       <|reserved_special_token_6|>
    128015   <｜▁pad▁｜>                    <|reserved_special_token_7|>

128000 and 128001 have other names too, but begin and end a text for both models. In the derivation
of a direction the base model reads these tokens as they are, in the reasoning model's traces:
another text would be other positions. Spelled out by its own tokenizer they would be ordinary
tokens instead (`<`, `think`, `>`), which is why traces are encoded once, by the reasoning model's.
"""

from typing import Any

from jaxsteer.tokenizers import render


def check_shared_vocabulary(base: Any, reasoning: Any) -> None:
    """The base model reads the reasoning model's ids, so words must have one id in both.

    Added tokens may differ; `unseen_tokens` tells of them.

    Raises:
        ValueError: naming the first id that means two things.
    """
    names = {id: name for name, id in base.get_vocab().items()}
    added = reasoning.get_added_vocab()
    for name, id in sorted(reasoning.get_vocab().items(), key=lambda item: item[1]):
        if name not in added and names.get(id) != name:
            raise ValueError(
                f"models.reasoning: got {name!r} for id {id}, expected the base model's "
                f"{names.get(id)!r}: it reads these ids"
            )


def unseen_tokens(base: Any, reasoning: Any) -> dict[str, dict[str, str | None]]:
    """Special tokens of the reasoning model that mean nothing to the base model, by id.

    They are those that its chat template writes, and those that the base model's tokenizer has
    under another name or not at all; begin and end of a text apart.

    Args:
        base: the base model's tokenizer.
        reasoning: the reasoning model's tokenizer.

    Returns `{id: {"reasoning": its name, "base": what the base model's tokenizer calls the id}}`.
    """
    shared = {base.bos_token_id, base.eos_token_id, base.unk_token_id}
    names = {id: name for name, id in base.get_vocab().items()}
    written: set[int] = set()
    if reasoning.chat_template:
        text = render(reasoning, [{"role": "user", "content": ""}])
        written = set(reasoning(text, add_special_tokens=False)["input_ids"])
    return {
        str(id): {"reasoning": name, "base": names.get(id)}
        for name, id in sorted(reasoning.get_added_vocab().items(), key=lambda item: item[1])
        if id not in shared and (id in written or names.get(id) != name)
    }
