"""The bytes of tokens put together are what the tokenizer decodes."""

import json

import numpy as np
import pytest
from hf_folders import byte_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jaxsteer.decoding.results import Generation
from jaxsteer.tokenizers.token_text import token_bytes
from weights.small_language.tokenizer import save_tokenizer

TEXT = "Hello, wörld! 你好 🙂\n\n\tx = 3;  two  spaces\u00a0\x00end"


def sentencepiece_tokenizer() -> Tokenizer:
    """As Llama-2's: spaces are U+2581, unknown characters spelled as byte tokens."""
    letters = {c: i for i, c in enumerate("\u2581Helowrd,!x=3;twspacen", start=300)}
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "\u2581He": 290, "llo": 291, **letters}
    vocab |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    vocab = {token: i for i, token in enumerate(sorted(vocab, key=vocab.__getitem__))}
    merges = [("\u2581", "H"), ("l", "l")]
    vocab |= {"".join(pair): len(vocab) + i for i, pair in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False, prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


@pytest.fixture(params=["bytes", "sentencepiece"])
def tokenizer(request, tmp_path):
    made = byte_tokenizer() if request.param == "bytes" else sentencepiece_tokenizer()
    # Names with characters that stand for no byte, and with one that stands for another.
    made.add_special_tokens([AddedToken("<\uff5cend\u2581of\uff5c>"), AddedToken("<think>")])
    return PreTrainedTokenizerFast(tokenizer_object=made)


def test_the_bytes_of_a_text_are_the_text(tokenizer):
    pieces = token_bytes(tokenizer)
    assert len(pieces) == len(tokenizer)
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    assert b"".join(pieces[i] for i in ids).decode() == TEXT
    assert any(len(pieces[i]) == 1 and pieces[i][0] > 127 for i in ids)  # parts of characters


def test_special_tokens_write_their_names(tokenizer):
    pieces = token_bytes(tokenizer)
    assert pieces[tokenizer.convert_tokens_to_ids("<think>")] == b"<think>"
    strange = pieces[tokenizer.convert_tokens_to_ids("<\uff5cend\u2581of\uff5c>")].decode()
    assert strange in ("<\uff5cend\u2581of\uff5c>", "<\uff5cend of\uff5c>")


def test_words_are_joined_with_spaces(tmp_path):
    save_tokenizer(tmp_path, max_length=64, chat=False)
    words = AutoTokenizer.from_pretrained(str(tmp_path))
    pieces = token_bytes(words)
    ids = np.random.default_rng(0).integers(len(words), size=30).tolist()
    text = words.decode(ids, clean_up_tokenization_spaces=False)
    assert b"".join(pieces[i] for i in ids).decode() == " " + text
    assert pieces[words.eos_token_id] == b" <eos>"


def test_every_byte_has_its_character():
    """Of all 256 one-byte tokens of a byte-level vocabulary."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer())
    pieces = token_bytes(tokenizer)
    assert {piece for piece in pieces if len(piece) == 1} == {bytes([b]) for b in range(256)}


def test_other_tokenizers_are_refused(tmp_path):
    made = byte_tokenizer()
    made.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match="got one that decodes with WordPiece, expected byte-le"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=made))
    made.decoder = decoders.Sequence([decoders.Replace("a", "b"), decoders.Fuse()])
    with pytest.raises(ValueError, match="its decoder is not one whose tokens' bytes are known"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=made))
    with pytest.raises(ValueError, match="tokenizer: got object, expected a fast tokenizer"):
        token_bytes(object())


def test_ids_that_stand_for_no_token_write_nothing_and_are_counted():
    """Models pad their vocabularies; sampled, such an id was an IndexError."""
    pieces = [b"a", b" b", b""]
    tokens = np.array([[0, 7, 1], [2, 9, 0]], np.int32)
    out = Generation(tokens, np.zeros((2, 3), np.float32), np.array([3, 2], np.int32))
    assert out.texts(pieces) == ["a b", ""]
    assert out.count_unknown_ids(pieces) == [1, 2]


def test_tokens_behind_a_gap_have_their_bytes():
    made = byte_tokenizer()
    size = made.get_vocab_size()
    data = json.loads(made.to_str())
    data["added_tokens"].append({**data["added_tokens"][0], "id": size + 3, "content": "<late>"})
    data["model"]["vocab"]["<late>"] = size + 3
    made = Tokenizer.from_str(json.dumps(data))
    pieces = token_bytes(PreTrainedTokenizerFast(tokenizer_object=made))
    assert pieces[size:] == [b"", b"", b"", b"<late>"]
