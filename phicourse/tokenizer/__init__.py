"""Text to token ids and back, and conversations to token ids."""

from phicourse.tokenizer.bpe import BytePairEncoder, merge_by_rank
from phicourse.tokenizer.chat import ChatTemplate
from phicourse.tokenizer.detokenize import StreamDecoder
from phicourse.tokenizer.pre_tokenizer import PreTokenizer
from phicourse.tokenizer.spm import SentencePieceEncoder, merge
from phicourse.tokenizer.tokenizer import Tokenizer
from phicourse.tokenizer.vocabulary import TokenType, Vocabulary

__all__ = [
    "BytePairEncoder",
    "ChatTemplate",
    "PreTokenizer",
    "SentencePieceEncoder",
    "StreamDecoder",
    "TokenType",
    "Tokenizer",
    "Vocabulary",
    "merge",
    "merge_by_rank",
]
