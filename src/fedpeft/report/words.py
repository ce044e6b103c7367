"""What the figures of a report mean, beside its metrics, in words; the texts are HTML."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["MEANINGS"]

MEANINGS: Mapping[str, str] = {
    "Last and best round": (
        "The last round is the result. The best round is picked by looking at the evaluation set, "
        "so it flatters."
    ),
    "± std": "Sample standard deviation over seeds (n − 1).",
    "95 % interval": (
        "Where the mean over seeds would lie if many more were run, by Student's t with n − 1 "
        "degrees of freedom, cut to what is possible. It covers the seed (start, partition, "
        "cohorts, order), not another data set or model. Two or three seeds make it wide."
    ),
    "Seeds": (
        "How many have finished, of all that were asked for; those below are in the figures. A "
        "failed or missing seed is named beside its row and counts in no mean."
    ),
    "Trained": (
        "Parameters that are trained and sent; the share is of all parameters of the tuned model."
    ),
    "Payload": (
        "What theory says one client sends, or receives, in one round: the bytes of the tensors "
        "alone, without framing or compression. MB = 10<sup>6</sup> B, MiB = 2<sup>20</sup> B."
    ),
    "Bytes up, bytes down": (
        "What was really encoded, framing and compression included, added up over all clients and "
        "rounds: replies (up) and broadcasts (down). The one-time delivery of the frozen backbone "
        "is not in it."
    ),
    "Time": "Wall time of the run, on the machine named below.",
    "ε": "Differential privacy spent by the whole run; none means that nothing is promised. "
    "“simulation: not private” means that the noise was drawn from the experiment's seed, so that "
    "whoever knows the seed can take it away; “guarantees nothing” is what it says.",
}
"""Term -> meaning, in the order of the table's columns."""
