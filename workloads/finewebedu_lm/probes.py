"""What a model of the King James Bible can do: questions with two answers each.

Knowledge, from the training text: `phrases` (the land of Egypt, the children of Israel:
words that three tokens mostly lead to) and `rare_phrases`, stated less often, where
both questions of a pair end with the same token, so that one must know more than the
last. Rules, on text that was not trained on: `agreement` (thou art, he is), `case`
(unto thee, if thou), `endings` (thou comest, he cometh) and `articles` (a man, an
hundred).

Questions come in twos that ask for each other's answers, so a model that does not look
at the question has exactly one of two right.
"""

import functools
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from algoperf.data.apart import Kind, Probe
from workloads.finewebedu_lm import data

CONTEXT = 24  # tokens before an answer
MOST = 256  # questions of a probe
SELDOM, OFTEN = 10, 30  # times that the three tokens of a phrase stand together
SHARE = 0.7  # of these, how often the same word follows
# Forms of one verb, with the subjects that take them and take no other of their two.
VERBS = (
    ("thou", "art", "he|she|it", "is"),
    ("thou", "hast", "he|she|it", "hath"),
    ("thou", "shalt", "he|she|it|they|we|ye|I", "shall"),
    ("thou", "hast", "they|we|ye|I", "have"),
    ("he|she|it", "is", "they|we|ye", "are"),
    ("he|she|it", "hath", "they|we|ye|I", "have"),
    ("he|she|it|I", "was", "they|we|ye", "were"),
)
CASES = (("I", "me"), ("thou", "thee"), ("he", "him"), ("they", "them"), ("we", "us"))
SUBJECTS = (b"I", b"thou", b"he", b"she", b"it", b"we", b"ye", b"they")
BEFORE_SUBJECTS = "if|when|because|lest|until|that|as|which|whom|what"
BEFORE_OBJECTS = "unto|of|with|from|upon|to|by|against|before|among"


class Text(NamedTuple):
    """A stream of tokens and its bytes."""

    tokens: np.ndarray  # (n,)
    starts: np.ndarray  # (n + 1,), where each token begins in `raw`
    raw: bytes

    def cut(self, first: int, last: int) -> list[int]:
        """Returns the tokens of bytes [first, last), which begin and end with them."""
        a, b = np.searchsorted(self.starts, [first, last])
        if self.starts[a] != first or self.starts[b] != last:
            raise ValueError(f"{self.raw[first:last]!r} is no whole number of tokens")
        return self.tokens[a:b].tolist()

    def before(self, place: int) -> list[int]:
        """Returns the tokens before a byte, `CONTEXT` of them if there are."""
        number = int(np.searchsorted(self.starts, place))
        return self.tokens[max(0, number - CONTEXT) : number].tolist()


class Item(NamedTuple):
    """A place in a text: what stands before it, and what follows."""

    context: list[int]
    answer: list[int]


@functools.cache
def text(split: str) -> Text:
    """Returns a split's text."""
    tokens = data.tokens(split)
    pieces = data.spellings()
    lengths = np.array([len(piece) for piece in pieces])
    starts = np.concatenate([[0], np.cumsum(lengths[tokens])])
    return Text(tokens, starts, b"".join(pieces[i] for i in tokens))


def probes() -> dict[str, Probe]:
    """Returns the probes by name."""
    return {
        "phrases": _probe("knowledge", _phrases(OFTEN, math.inf, alike=False)),
        "rare_phrases": _probe("knowledge", _phrases(SELDOM, OFTEN, alike=True)),
        "agreement": _probe("rule", _agreement()),
        "case": _probe("rule", _cases()),
        "endings": _probe("rule", _endings()),
        "articles": _probe("rule", _articles()),
    }


def _probe(kind: Kind, pairs: Iterable[tuple[Item, Item]]) -> Probe:
    """Makes two questions of each pair: each one's answer is wrong for the other."""
    right, wrong = [], []
    for one, other in itertools.islice(pairs, MOST // 2):
        for own, foreign in ((one, other), (other, one)):
            right.append((own.context, own.answer))
            wrong.append((own.context, foreign.answer))
    return Probe(kind, _batch(right), _batch(wrong))


def _batch(rows: Sequence[tuple[list[int], list[int]]]) -> dict[str, np.ndarray]:
    """Returns (N, L) arrays; what follows an answer is end-of-text of no weight."""
    shape = (len(rows), data.SEQUENCE_LENGTH)
    batch = {
        "inputs": np.full(shape, data.END_OF_TEXT, np.int32),
        "targets": np.full(shape, data.END_OF_TEXT, np.int32),
        "weights": np.zeros(shape, np.float32),
    }
    for row, (context, answer) in enumerate(rows):
        whole = [*context, *answer]
        size = len(whole) - 1
        batch["inputs"][row, :size] = whole[:-1]
        batch["targets"][row, :size] = whole[1:]
        batch["weights"][row, size - len(answer) : size] = 1
    return batch


def _shuffled(pairs: Sequence[tuple[Item, Item]], seed: int) -> list[tuple[Item, Item]]:
    return [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))]


def _phrases(least: int, most: float, alike: bool) -> Iterable[tuple[Item, Item]]:
    """Words that three tokens mostly lead to.

    Args:
      least: times that the three stand together.
      most: that they stand together less often than.
      alike: whether both questions of a pair have the same third token.
    """
    tokens = text("train").tokens
    starts_word = [piece.startswith(b" ") for piece in data.spellings()]
    followers: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    places: dict[tuple[tuple[int, ...], int], int] = {}
    stream = tokens.tolist()
    for place in range(3, len(stream)):
        known = tuple(stream[place - 3 : place])
        followers[known][stream[place]] += 1
        places[known, stream[place]] = place  # the last one
    groups: dict[int, dict[int, tuple[int, ...]]] = defaultdict(dict)
    for known, counts in followers.items():
        (best, number), *_ = counts.most_common(1)
        total = counts.total()
        if least <= total < most and number >= SHARE * total and starts_word[best]:
            # Each answer once for a group.
            groups[known[-1] if alike else 0].setdefault(best, known)
    pairs = []
    for answers in groups.values():
        items = [
            (known, best, Item(_until(tokens, places[known, best]), [best]))
            for best, known in answers.items()
        ]
        for (known, best, one), (others, other_best, other) in zip(
            items[::2], items[1::2], strict=False
        ):
            if not followers[known][other_best] and not followers[others][best]:
                pairs.append((one, other))
    return _shuffled(pairs, 3)


def _until(tokens: np.ndarray, place: int) -> list[int]:
    return tokens[max(0, place - CONTEXT) : place].tolist()


def _unseen() -> list[Text]:
    return [text("validation"), text("test")]


def _found(pattern: str) -> list[Item]:
    """Returns the places of unseen text where a pattern's second group follows."""
    expression = re.compile(rb"\b(?:" + pattern.encode() + rb")\b")
    return [
        Item(source.before(match.start(1)), source.cut(*match.span(1)))
        for source in _unseen()
        for match in expression.finditer(source.raw)
    ]


def _agreement() -> Iterable[tuple[Item, Item]]:
    pairs = []
    for subject, form, other_subject, other_form in VERBS:
        one = _found(f"(?:{subject})( {form})")
        other = _found(f"(?:{other_subject})( {other_form})")
        pairs += list(zip(one, other, strict=False))
    return _shuffled(pairs, 4)


def _cases() -> Iterable[tuple[Item, Item]]:
    pairs = []
    for subject, object_ in CASES:
        one = _found(f"(?:{BEFORE_SUBJECTS})( {subject})")
        other = _found(f"(?:{BEFORE_OBJECTS})( {object_})")
        pairs += list(zip(one, other, strict=False))
    return _shuffled(pairs, 5)


def _endings() -> Iterable[tuple[Item, Item]]:
    """'thou com' goes on with 'est', 'he com' with 'eth': the nearest pronoun says."""
    spellings = data.spellings()
    wanted = {b"thou": spellings.index(b"est"), b"he": spellings.index(b"eth")}
    found: dict[bytes, list[Item]] = {subject: [] for subject in wanted}
    for source in _unseen():
        for subject, ending in wanted.items():
            for place in np.flatnonzero(source.tokens == ending).tolist():
                context = _until(source.tokens, place)
                words = b"".join(spellings[i] for i in context).split()
                subjects = [w for w in words if w in SUBJECTS]
                is_verb = words and words[-1].islower()  # no 'Mephibosh-eth'
                if is_verb and subjects and subjects[-1] == subject:
                    found[subject].append(Item(context, [ending]))
    return _shuffled(list(zip(*found.values(), strict=False)), 7)


def _articles() -> Iterable[tuple[Item, Item]]:
    """Words after 'an' and 'thine', and after 'a' and 'thy': their first tokens."""
    pairs = []
    for before_vowels, before_others in (("an", "a"), ("thine", "thy"), ("mine", "my")):
        one = _found(f"{before_vowels}( [a-z]+)")
        other = _found(f"{before_others}( [bcdfgklmnprstvw][a-z]+)")
        pairs += list(zip(one, other, strict=False))
    return _shuffled([pair for pair in pairs if pair[0][1] != pair[1][1]], 8)
