"""Vocabularies of subwords (Kudo 2018, arXiv:1804.10959): learned, stored, loaded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece

from algoperf.errors import UserError


def learn(sentences: Iterator[str], path: Path, vocab_size: int, **ids: int) -> None:
    """Learns a unigram vocabulary that covers every character, and writes it.

    Args:
      sentences: texts, one after another.
      path: of the model, ends in '.model'.
      vocab_size: of the vocabulary, special tokens counted.
      **ids: of the special tokens: pad_id, bos_id, eos_id, unk_id; -1 for none.

    Raises:
      UserError: the texts are too few for so large a vocabulary.
    """
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_prefix=str(path.with_suffix("")),
            vocab_size=vocab_size,
            model_type="unigram",
            character_coverage=1.0,
            minloglevel=2,
            **ids,
        )
    except RuntimeError as error:
        raise UserError(
            f"cannot learn a vocabulary of {vocab_size:,} subwords: "
            f"{' '.join(str(error).split())[-200:]}"
        ) from error
    path.with_suffix(".vocab").unlink()  # the same once more, as text


def load(path: Path) -> Any:
    """Returns the `SentencePieceProcessor` of a model.

    Raises:
      UserError: the file is missing or broken.
    """
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read as a SentencePiece model") from error


def from_bytes(model: bytes) -> Any:
    """Returns the `SentencePieceProcessor` of the bytes of a model."""
    return sentencepiece.SentencePieceProcessor(model_proto=model)
