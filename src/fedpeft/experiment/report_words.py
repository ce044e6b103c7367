"""What the figures of a report mean, in words; the texts are HTML."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["MEANINGS"]

MEANINGS: Mapping[str, str] = {
    "Accuracy": (
        "Share of the server's whole evaluation set that the model gets right after a round."
    ),
    "Perplexity": (
        "exp of the mean loss, in nats, over the predicted tokens of the server's whole evaluation "
        "set; 1 is perfect."
    ),
    "Last and best round": (
        "The last round is the result. The best round is picked by looking at the evaluation set, "
        "so it flatters."
    ),
    "±": "Sample standard deviation over seeds (n − 1).",
    "Trained": (
        "Parameters that are trained and sent; the share is of all parameters of the tuned model."
    ),
    "Payload": (
        "What theory says one client sends, or receives, in one round: the bytes of the tensors "
        "alone, without framing or compression. MB = 10<sup>6</sup> B, MiB = 2<sup>20</sup> B."
    ),
    "Encoded": (
        "What was really encoded, framing and compression included: mean bytes of one reply (up) "
        "and, below it, of one broadcast to one client (down)."
    ),
    "Total bytes": (
        "Encoded bytes of all messages of all rounds, both ways. The one-time delivery of the "
        "frozen backbone is not in it."
    ),
    "Time": "Wall time of the run, on the machine named below.",
    "ε": "Differential privacy spent by the whole run; none means that nothing is promised.",
}
"""Term -> meaning, in the order of the table's columns."""
