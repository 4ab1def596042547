"""What a model of the King James Bible can do: questions with two answers each.

Knowledge, from the training text: `names` (Joshua the son of Nun, Og king of Bashan:
relations that are stated twice or more) and `recall` (which of two continuations
belongs to a passage, after the same two tokens). Rules, on text that was not trained
on: `agreement` (thou art, he is), `case` (unto thee, if thou) and `copying` (Salah
begat Eber; and Eber: of names that were never so joined).

Questions come in twos that ask for each other's answers, so a model that does not look
at the question has exactly one of two right.
"""

import functools
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from algoperf.data.apart import Kind, Probe
from workloads.finewebedu_lm import data

CONTEXT = 24  # tokens before an answer
CONTINUATION = 4  # tokens of an answer of `recall`
MOST = 256  # questions of a probe
STATED = 2  # times that a relation is stated
RELATION = re.compile(
    rb"\b([A-Z][a-z]+),?( the son of| the king of| king of| the)( [A-Z][a-z]+)\b"
)
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
        "names": _probe("knowledge", _names()),
        "recall": _probe("knowledge", _recall()),
        "agreement": _probe("rule", _agreement()),
        "case": _probe("rule", _cases()),
        "copying": _probe("rule", _copying()),
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


def _in_twos(items: Sequence[Item]) -> Iterable[tuple[Item, Item]]:
    """Pairs items whose answers are about as long, in an order drawn once."""
    order = np.random.default_rng(0).permutation(len(items))
    ordered = sorted((items[i] for i in order), key=lambda item: len(item.answer))
    return _shuffled(list(zip(ordered[::2], ordered[1::2], strict=False)), 1)


def _names() -> Iterable[tuple[Item, Item]]:
    """Relations: who is whose son, which people or land is whose."""
    train = text("train")
    places: dict[tuple[bytes, bytes], dict[bytes, list[int]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for match in RELATION.finditer(train.raw):
        name, relation, answer = match.groups()
        kind = b" ".join(relation.split()[-2:])  # 'the king of' is 'king of'
        places[name, kind][answer].append(match.start(3))
    words = set(re.findall(rb"\b[a-z]+\b", train.raw))
    items: dict[bytes, dict[bytes, Item]] = defaultdict(dict)
    for (name, kind), answers in places.items():
        (answer, found), *others = answers.items()
        if others or len(found) < STATED or name.lower() in words:  # no name: 'Then'
            continue
        cut = train.cut(found[0], found[0] + len(answer))
        # Each answer once, so that none fits both questions of a pair.
        items[kind].setdefault(answer, Item(_since(train, name, found[0]), cut))
    return _shuffled(
        [pair for kind in items for pair in _in_twos(list(items[kind].values()))], 2
    )


def _since(source: Text, name: bytes, place: int) -> list[int]:
    """Returns the tokens from a name's last occurrence before a place on.

    What stands further back may have the answer in it.
    """
    first = source.raw.rindex(name, 0, place)
    first -= source.raw[first - 1 : first] == b" "  # a part of the name's first token
    return source.cut(first, place)


def _shuffled(pairs: Sequence[tuple[Item, Item]], seed: int) -> list[tuple[Item, Item]]:
    return [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))]


def _recall() -> Iterable[tuple[Item, Item]]:
    """Passages of the training text that go on after the same two tokens."""
    tokens = text("train").tokens
    places: dict[tuple[int, int], list[int]] = defaultdict(list)
    draws = np.random.default_rng(3)
    inside = draws.permutation(np.arange(CONTEXT, len(tokens) - CONTINUATION))
    for place in inside[: 40 * MOST].tolist():
        places[int(tokens[place - 2]), int(tokens[place - 1])].append(place)
    windows = np.lib.stride_tricks.sliding_window_view(tokens, CONTINUATION)
    counts = Counter(map(bytes, windows))
    pairs = []
    for found in places.values():
        rare = [p for p in found if counts[bytes(windows[p])] == 1]
        items = [
            Item(
                tokens[p - CONTEXT : p].tolist(), tokens[p : p + CONTINUATION].tolist()
            )
            for p in rare
        ]
        pairs += list(zip(items[:2:2], items[1:2:2], strict=False))
    return pairs


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


def _copying() -> Iterable[tuple[Item, Item]]:
    """'And X begat Y; and' goes on with Y, of names that no verse so joins."""
    train = text("train")
    spans = {
        match.group(3): match.span(3)
        for match in RELATION.finditer(train.raw)
        if match.group(2) == b" the son of"
    }
    names = [train.cut(*span) for _, span in sorted(spans.items())]
    match = next(
        re.finditer(rb"(\nAnd) [A-Z][a-z]+( begat) [A-Z][a-z]+(; and)", train.raw)
    )
    begin, begat, then = (train.cut(*match.span(group)) for group in (1, 2, 3))
    shuffled = [names[i] for i in np.random.default_rng(6).permutation(len(names))]
    for one, other in zip(shuffled[::2], shuffled[1::2], strict=False):
        yield (
            Item([*begin, *one, *begat, *other, *then], other),
            Item([*begin, *other, *begat, *one, *then], one),
        )
