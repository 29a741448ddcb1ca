"""What phi-tiny reads while it trains: stories and fables as plain documents and as conversations, in batches.

A conversation's prompt is made from its story: nouns that the story repeats, names that it gives. Hugging Face
and llama.cpp tokenize Phi-3's chat format in different ways (see `FORMS`), so phi-tiny learns them all.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
from phi_tiny_tokenizer import ADDED, PIECES, read_documents
from torch import Tensor

BOS = 1
SPECIAL = {content: PIECES + index for index, content in enumerate(ADDED)}
END_OF_TEXT, END = SPECIAL["<|endoftext|>"], SPECIAL["<|end|>"]
SHORT = 512  # positions that LongRoPE's short factors serve
LONG = 2048
IGNORED = -100  # the target of padding

# How the line feed after <|user|> reaches the model, and whether a space precedes the words after it.
# "kept": llama.cpp's vocabulary; "stripped": rstrip, as tokenizer.json says; "bare": transformers 5.
FORMS = ("kept", "stripped", "bare")


def word_set(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


ARTICLES = word_set("a an the his her their my your")
BEFORE_ADJECTIVES = word_set("very so too was were felt feel is are more looked feeling")
AFTER_NOUNS = word_set(". , ! ? and was in to on with that who named called said had is for at from could")
NOT_TOPICS = word_set(
    "time day way lot moment end top side one thing things while little part bit place other few name idea"
    " morning night middle front back next rest same best problem help look fun smile great good new very"
)
OPENING = 110  # characters of a story that say what it is about
REQUESTS = (
    "Tell me a {kind} about {topic}.",
    "Tell me a {kind} about {topic}.",
    "Tell me a {kind} about {topic}.",
    "Tell me a short {kind} about {topic}.",
    "Write a {kind} about {topic}.",
    "Write a short {kind} about {topic}.",
    "Please tell me a {kind} about {topic}.",
    "Can you tell me a {kind} about {topic}?",
    "Could you write a little {kind} about {topic}?",
    "I want to hear a {kind} about {topic}.",
    "I would like a {kind} about {topic}, please.",
    "Do you know a {kind} about {topic}?",
    "Make up a {kind} about {topic}.",
    "Give me a {kind} with {topic} in it.",
    "A {kind} about {topic}, please!",
)
OPEN_REQUESTS = (
    "Tell me a {kind}.",
    "Tell me a short {kind}.",
    "Can you tell me a {kind}?",
    "Write a {kind} for children.",
    "I am bored. Tell me a {kind}!",
)
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful AI assistant.",
    "You tell short stories for children.",
    "You are a friendly storyteller.",
)
SMALL_TALK = (
    ("Hello!", "Hello! I tell short stories. What should my story be about?"),
    ("Hi", "Hello! I tell short stories. What should my story be about?"),
    ("Who are you?", "I am phi-tiny, a very small language model. I can tell you a short story."),
    ("What are you?", "I am phi-tiny, a very small language model. I can tell you a short story."),
    ("What is your name?", "My name is phi-tiny. Ask me for a story about an animal or a child!"),
    ("What can you do?", "I can tell short stories. Ask me for a story about a dog, a girl or a tree!"),
    ("Thank you!", "You are welcome! Would you like another story?"),
    ("How are you?", "I am fine, thank you! Would you like to hear a story?"),
)


@dataclass
class Story:
    """A text in two tokenizations, and what one could ask to hear it."""

    kind: str  # "story" or "fable"
    spaced: list[int]  # tokens with the space that begins a text
    bare: list[int]  # tokens as they follow a line feed
    topics: list[str]


class Library:
    """Stories and fables in an endless shuffled stream; `fable_share` of its tokens are fables."""

    def __init__(self, stories: list[Story], fable_share: float, seed: int) -> None:
        """Sort the stories by kind."""
        self.random = random.Random(seed)
        self.kinds = {kind: [s for s in stories if s.kind == kind] for kind in ("story", "fable")}
        self.decks: dict[str, list[Story]] = {"story": [], "fable": []}
        mean = {kind: sum(len(s.bare) for s in all_) / len(all_) for kind, all_ in self.kinds.items()}
        odds = fable_share / mean["fable"] / ((1 - fable_share) / mean["story"])
        self.fable_chance = odds / (1 + odds)

    def draw(self) -> Story:
        """The next story or fable; each kind is used up before any of it comes again."""
        kind = "fable" if self.random.random() < self.fable_chance else "story"
        if not self.decks[kind]:
            self.decks[kind] = self.random.sample(self.kinds[kind], len(self.kinds[kind]))
        return self.decks[kind].pop()


def find_nouns(texts: list[str]) -> set[str]:
    """Words that behave as nouns in these texts.

    They follow an article often, and "very" or "felt" hardly ever; after them comes what follows nouns.
    """
    seen: Counter[str] = Counter()
    singular: Counter[str] = Counter()
    article: Counter[str] = Counter()
    quality: Counter[str] = Counter()
    closed: Counter[str] = Counter()
    for text in texts:
        words = re.findall(r"[a-z]+|[.,!?]", text.lower())
        for before, word, after in zip(words, words[1:], words[2:], strict=False):
            seen[word] += 1
            singular[word] += before in ("a", "an")
            article[word] += before in ARTICLES
            quality[word] += before in BEFORE_ADJECTIVES
            closed[word] += after in AFTER_NOUNS
    return {
        word
        for word, n in seen.items()
        if n >= 12 and len(word) > 2 and word not in NOT_TOPICS
        and singular[word] > 0.01 * n and article[word] > 0.2 * n
        and quality[word] < 0.04 * n and closed[word] > 0.5 * n
    }  # fmt: skip


def topics_of(text: str, nouns: set[str]) -> list[str]:
    """What a story is about, most mentioned first: "a dog", "a girl named Lily".

    Only what its first words name and the rest repeats: a request must foretell how its answer begins.
    """
    opening = text[:OPENING]
    words = Counter(re.findall(r"[a-z]+", text.lower()))
    early = [w for w in dict.fromkeys(re.findall(r"[a-z]+", opening.lower())) if w in nouns and words[w] > 1]
    topics = [
        f"{'an' if word[0] in 'aeiou' else 'a'} {word}" for word in sorted(early, key=lambda w: -words[w])
    ]
    for noun, name in re.findall(r"(\w+) (?:named|called) ([A-Z][a-z]+)", opening):
        if noun in nouns:
            topics += [f"a {noun} named {name}", name]
    return topics


def load_library(texts: Path, tokenizer: Path, fable_share: float, seed: int) -> Library:
    """Read and tokenize the training texts: half a minute."""
    stories, fables = (read_documents(texts / f) for f in ("tinystories_train.txt", "tinyfabulist_en.txt"))
    documents = stories + fables
    kinds = ["story"] * len(stories) + ["fable"] * len(fables)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    spaced = processor.encode(documents)
    bare = [tokens[2:] for tokens in processor.encode(["\n" + text for text in documents])]
    nouns = find_nouns(documents)
    topics = [topics_of(text, nouns) for text in documents]
    return Library([Story(*row) for row in zip(kinds, spaced, bare, topics, strict=True)], fable_share, seed)


class Documents:
    """Makes token lists of stories: plain ones, conversations, and packs of several."""

    def __init__(self, library: Library, tokenizer: Path, chat_share: float, pack_share: float) -> None:
        """`chat_share` of the documents are conversations, `pack_share` of the tokens come in packs."""
        self.library, self.chat_share, self.pack_share = library, chat_share, pack_share
        self.random = library.random
        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))

    def plain(self, story: Story) -> list[int]:
        """<s> story <|endoftext|>."""
        return [BOS, *story.spaced, END_OF_TEXT]

    def request(self, story: Story) -> str:
        """A wish that this story fulfils."""
        kind = "story" if self.random.random() < 0.7 else story.kind
        if not story.topics or self.random.random() < 0.07:
            return self.random.choice(OPEN_REQUESTS).format(kind=kind)
        weights = [2.0**-rank for rank in range(len(story.topics))]
        topic = self.random.choices(story.topics, weights)[0]
        if self.random.random() < 0.12:
            topic = " and ".join(dict.fromkeys([topic, self.random.choice(story.topics)]))
        wish = self.random.choice(REQUESTS).format(kind=kind, topic=topic)
        return wish[0].lower() + wish[1:].rstrip(".?!") if self.random.random() < 0.06 else wish

    def turn(self, role: str, text: str, form: str) -> list[int]:
        """<|role|> text <|end|> with the line feeds that the form keeps."""
        tokens = self.processor.encode(text if form == "stripped" else "\n" + text)
        return self.close([SPECIAL[f"<|{role}|>"], *(tokens[2:] if form == "bare" else tokens)], form)

    def answer(self, tokens: list[int], form: str) -> list[int]:
        """The assistant's turn; its text begins without a space, so that it prints as it is."""
        line_feed = self.processor.encode("\n") if form == "kept" else []
        return self.close([SPECIAL["<|assistant|>"], *line_feed, *tokens], form)

    def close(self, tokens: list[int], form: str) -> list[int]:
        """End a turn."""
        return [*tokens, END, *(self.processor.encode("\n") if form == "kept" else [])]

    def conversation(self, stories: list[Story]) -> list[int]:
        """One turn of user and assistant for each story; now and then a system's or small talk before."""
        form = self.random.choice(FORMS)
        tokens = [] if form == "bare" and self.random.random() < 0.7 else [BOS]
        if self.random.random() < 0.1:
            tokens += self.turn("system", self.random.choice(SYSTEMS), form)
        if self.random.random() < 0.02:
            question, reply = self.random.choice(SMALL_TALK)
            tokens += self.turn("user", question, form)
            tokens += self.answer(self.processor.encode("\n" + reply)[2:], form)
        for story in stories:
            tokens += self.turn("user", self.request(story), form)
            tokens += self.answer(story.bare, form)
        return [*tokens, END_OF_TEXT]

    def single(self) -> list[int]:
        """The next document."""
        story = self.library.draw()
        is_chat = bool(story.topics) and self.random.random() < self.chat_share
        return self.conversation([story]) if is_chat else self.plain(story)

    def pack(self) -> list[int]:
        """Several documents, or one long conversation, for the long factors; 513 to 2048 tokens."""
        length = self.random.randint(SHORT + 200, LONG)
        if self.random.random() < 0.3:
            tokens = self.conversation([self.library.draw() for _ in range(1 + length // 300)])
        else:
            tokens = []
            while len(tokens) < length:
                tokens += self.single()
        return tokens[: length + 1]

    def batches(self, tokens: int, pool: int = 1500) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless batches of about so many tokens: inputs and targets, each (batch, time) int64.

        Documents of one batch are of similar length. `pool` documents at a time are sorted for that.
        """
        packed_tokens = single_tokens = 1
        while True:
            documents = []
            for _ in range(pool):
                is_pack = packed_tokens < self.pack_share * (packed_tokens + single_tokens)
                document = self.pack() if is_pack else self.single()[: LONG + 1]
                packed_tokens += len(document) * is_pack
                single_tokens += len(document) * (not is_pack)
                documents.append(document)
            groups = list(grouped(sorted(documents, key=len), tokens))
            yield from (padded(group) for group in self.random.sample(groups, len(groups)))


def grouped(documents: list[list[int]], tokens: int) -> Iterator[list[list[int]]]:
    """Cut a list that is sorted by length into batches; none has both short-factor and long-factor texts."""
    group: list[list[int]] = []
    for document in documents:
        time = len(document) - 1
        full = (len(group) + 1) * time > tokens
        mixed = bool(group) and (len(group[0]) - 1 <= SHORT) != (time <= SHORT)
        if group and (full or mixed):
            yield group
            group = []
        group.append(document)
    yield group


def padded(documents: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Inputs and targets, one token later, of documents; (batch, time), time a multiple of 16."""
    time = -(-max(len(d) - 1 for d in documents) // 16) * 16
    inputs = torch.full((len(documents), time), END_OF_TEXT)
    targets = torch.full((len(documents), time), IGNORED)
    for row, document in enumerate(documents):
        ids = torch.tensor(document)
        inputs[row, : len(ids) - 1] = ids[:-1]
        targets[row, : len(ids) - 1] = ids[1:]
    return inputs, targets
