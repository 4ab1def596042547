"""Mean average precision over tasks, as the Open Graph Benchmark defines it."""

import numpy as np


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Returns the area under the precision-recall steps; ties count as one threshold.

    AP = sum over thresholds of (recall_n - recall_{n-1}) * precision_n.

    Args:
      scores: (examples,), higher means more likely positive.
      labels: (examples,), 1 for positive and 0 for negative; some of them positive.

    Returns:
      NaN if a score is.
    """
    if np.isnan(scores).any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    scores, labels = scores[order], labels[order]
    last_of_tie = np.append(scores[1:] != scores[:-1], True)
    positives = np.cumsum(labels, dtype=np.float64)[last_of_tie]
    predicted = (np.flatnonzero(last_of_tie) + 1).astype(np.float64)
    gained = np.diff(positives, prepend=0.0)
    return float(np.sum(gained * positives / predicted) / positives[-1])


def mean_average_precision(
    scores: np.ndarray, labels: np.ndarray, mask: np.ndarray
) -> float:
    """Returns the mean over tasks that have a positive and a negative label.

    Hu et al. 2020, arXiv:2005.00687, section 4.2.

    Args:
      scores: (examples, tasks).
      labels: (examples, tasks), 0 or 1.
      mask: (examples, tasks), 0 where the label is missing.

    Returns:
      NaN if no task has both, or a score is NaN.
    """
    found = []
    for task in range(labels.shape[1]):
        known = mask[:, task] > 0
        task_labels = labels[known, task]
        if task_labels.any() and not task_labels.all():
            found.append(average_precision(scores[known, task], task_labels))
    return float(np.mean(found)) if found else float("nan")
