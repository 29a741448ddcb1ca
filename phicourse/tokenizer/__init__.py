"""Text to token ids and back, and conversations to token ids."""

from phicourse.tokenizer.chat import ChatTemplate
from phicourse.tokenizer.detokenize import StreamDecoder
from phicourse.tokenizer.spm import SentencePieceEncoder, merge
from phicourse.tokenizer.tokenizer import Tokenizer
from phicourse.tokenizer.vocabulary import TokenType, Vocabulary

__all__ = [
    "ChatTemplate",
    "SentencePieceEncoder",
    "StreamDecoder",
    "TokenType",
    "Tokenizer",
    "Vocabulary",
    "merge",
]
