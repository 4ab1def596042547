"""BLEU of a corpus (Papineni et al. 2002), as the package sacrebleu computes it."""

from collections.abc import Sequence

from algoperf.errors import UserError


def bleu(translations: Sequence[str], references: Sequence[str]) -> float:
    """Returns BLEU from 0 to 100: 4-grams, tokeniser 13a, one reference each.

    Raises:
      UserError: the package sacrebleu is missing.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise UserError(
            "BLEU needs the package sacrebleu: pip install 'algoperf[full]'"
        ) from error
    return BLEU().corpus_score(list(translations), [list(references)]).score
