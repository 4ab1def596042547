"""Vocabularies of subwords (Kudo 2018, arXiv:1804.10959): learned, stored, loaded."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece

from algoperf.errors import UserError


def trained(sentences: Iterator[str], vocab_size: int, **ids: int) -> bytes:
    """Learns a unigram vocabulary that covers every character; returns the model.

    The same sentences give the same bytes.

    Args:
      sentences: texts, one after another.
      vocab_size: of the vocabulary, special tokens counted.
      **ids: of the special tokens: pad_id, bos_id, eos_id, unk_id; -1 for none.

    Raises:
      UserError: the texts are too few for so large a vocabulary.
    """
    model = io.BytesIO()
    options: dict[str, Any] = dict(ids)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=model,
            vocab_size=vocab_size,
            model_type="unigram",
            character_coverage=1.0,
            minloglevel=2,
            **options,
        )
    except RuntimeError as error:
        raise UserError(
            f"cannot learn a vocabulary of {vocab_size:,} subwords: "
            f"{' '.join(str(error).split())[-200:]}"
        ) from error
    return model.getvalue()


def learn(sentences: Iterator[str], path: Path, vocab_size: int, **ids: int) -> None:
    """Writes what `trained` returns."""
    path.write_bytes(trained(sentences, vocab_size, **ids))


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
