"""`phicourse tokenize`."""

from typing import Annotated

import typer

from phicourse.cli.options import Model
from phicourse.cli.text import checked


def tokenize(
    file: Model, text: Annotated[str, typer.Argument(metavar="TEXT", help="What to tokenize.")]
) -> None:
    """Show the ids of a text and the piece that each stands for."""
    from phicourse.gguf import GGUFFile
    from phicourse.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_gguf(GGUFFile.open(file))
    for token in tokenizer.encode(checked(text), add_special=True, parse_special=True):
        decoder = tokenizer.stream(special=True, continues=True)  # alone, but with the space in front
        piece = decoder.push(token) + decoder.finish()
        if "\ufffd" in piece:  # a lone byte is no text
            piece = tokenizer.vocabulary.tokens[token]
        print(f"{token:6d} -> {piece!r}")
