"""Train phi-tiny's tokenizer and write it in the four files that Phi-3's releases have.

The vocabulary has Phi-3's layout at a sixteenth of its size: three controls, 256 byte pieces, SentencePiece
BPE pieces up to 2032, then Phi-3's eleven added tokens in Phi-3's order, then padding up to 2048.

    python data/phi_tiny_tokenizer.py --texts ../shared/data/text --out data/phi-tiny
"""

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

SEPARATOR = "<|endoftext|>"
PIECES = 2032  # what SentencePiece learns; the added tokens follow
VOCABULARY = 2048
ADDED = (
    "<|endoftext|>",
    "<|assistant|>",
    "<|placeholder1|>",
    "<|placeholder2|>",
    "<|placeholder3|>",
    "<|placeholder4|>",
    "<|system|>",
    "<|end|>",
    "<|placeholder5|>",
    "<|placeholder6|>",
    "<|user|>",
)
# Phi-3.5's template: a system turn only where it says something; without a generation prompt it ends the text.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and message['content'] %}"
    "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def read_documents(path: Path) -> list[str]:
    """The documents of a text file that separates them by <|endoftext|>, stripped, empty ones left out."""
    documents = (text.strip() for text in path.read_text(encoding="utf-8").split(SEPARATOR))
    return [text for text in documents if text]


def training_lines(texts: Path, fables: int) -> Iterator[str]:
    """Lines to learn pieces from: every story, and the first `fables` fables.

    Only a document's first line gets the space that the tokenizer puts before a text. SentencePiece would put
    one before every line, and would then never learn how a word looks after a line feed.
    """
    documents = read_documents(texts / "tinystories_train.txt")
    documents += read_documents(texts / "tinyfabulist_en.txt")[:fables]
    for document in documents:
        yield from (" " + document).split("\n")


def train_pieces(lines: Iterator[str]) -> bytes:
    """A SentencePiece BPE model of `PIECES` pieces, as Llama's and Phi-3's: serialized tokenizer.model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for line in lines if line.strip()),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        character_coverage=0.9999,
        required_chars="0123456789",
        max_sentence_length=1 << 20,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=2,
        minloglevel=0,
    )
    return with_dummy_prefix(model.getvalue())


def with_dummy_prefix(model: bytes) -> bytes:
    """Switch `normalizer_spec.add_dummy_prefix` on in a serialized SentencePiece model (protocol buffers)."""
    patched = bytearray(model)
    position = 0
    while position < len(model):
        key = model[position]  # field number * 8 + wire type 2; all fields of the model have one-byte keys
        length, start = read_varint(model, position + 1)
        if key == 3 << 3 | 2:  # ModelProto.normalizer_spec
            flag = model.index(b"\x18\x00", start, start + length)  # field 3, add_dummy_prefix, false
            patched[flag + 1] = 1
        position = start + length
    return bytes(patched)


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """A protocol-buffer integer, seven bits a byte, low bits first; and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def added_tokens() -> list[dict[str, object]]:
    """The added tokens of Phi-3.5: role tokens and <|end|> swallow the white space after them (rstrip)."""
    plain = [(0, "<unk>", True), (1, "<s>", True), (2, "</s>", False)]
    tokens = plain + [(PIECES + index, content, True) for index, content in enumerate(ADDED)]
    return [
        {
            "id": token,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": content not in ("<unk>", "<s>", "<|endoftext|>"),
            "normalized": False,
            "special": special,
        }
        for token, content, special in tokens
    ]


def merges(pieces: list[str]) -> list[str]:
    """Every way to make a piece of two others, in the order of the pieces: a BPE's merge list."""
    ids = {piece: index for index, piece in enumerate(pieces)}
    learned = pieces[3 + 256 :]
    ways: list[str] = []
    for piece in learned:
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [(ids[left], ids[right]) for left, right in splits if left in ids and right in ids]
        ways += [f"{pieces[left]} {pieces[right]}" for left, right in sorted(known)]
    return ways


def tokenizer_json(pieces: list[str]) -> dict[str, object]:
    """The same tokenizer for Hugging Face's fast tokenizers, in the structure of Phi-3's tokenizer.json."""
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens(),
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, first],
            "pair": [begin, first, {"SpecialToken": {"id": "<s>", "type_id": 1}}, second],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {piece: index for index, piece in enumerate(pieces)},
            "merges": merges(pieces),
        },
    }


def tokenizer_config() -> dict[str, object]:
    """Phi-3.5's tokenizer_config.json, with <s> put before every text."""
    decoder = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in added_tokens()
    }
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": decoder,
        "bos_token": "<s>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "legacy": False,
        "model_max_length": 2048,
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }


def special_tokens_map() -> dict[str, object]:
    """Which token plays which part, as in Phi-3's special_tokens_map.json."""
    parts = {
        "bos_token": "<s>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<unk>",
    }
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {part: {"content": content, **flags} for part, content in parts.items()}


def write_tokenizer(model: bytes, out: Path) -> None:
    """Write tokenizer.model and the JSON files that go with it into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.model").write_bytes(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
    documents = {
        "tokenizer.json": tokenizer_json(pieces),
        "tokenizer_config.json": tokenizer_config(),
        "special_tokens_map.json": special_tokens_map(),
        "added_tokens.json": {content: PIECES + index for index, content in enumerate(ADDED)},
    }
    for name, document in documents.items():
        text = json.dumps(document, ensure_ascii=False, indent=2)
        (out / name).write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Train on the texts and write the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, default=Path("../shared/data/text"))
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "phi-tiny")
    parser.add_argument("--fables", type=int, default=1500, help="how many fables to learn pieces from")
    arguments = parser.parse_args()
    write_tokenizer(train_pieces(training_lines(arguments.texts, arguments.fables)), arguments.out)


if __name__ == "__main__":
    main()
