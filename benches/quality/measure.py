"""Loss of a model on windows of a text, and its distance from the unquantised model.

All windows - 1 predictions of every window count, each window is a context of its own.
"""

import numpy as np
from tokenizers import Tokenizer

import testset


def test_windows():
    """The test text, tokenised once by Hugging Face's tokenizer: [windows, window] ids, and all of the ids."""
    ids = token_ids(testset.TEST_TEXT)
    used = testset.WINDOWS * testset.WINDOW
    return np.array(ids[:used]).reshape(testset.WINDOWS, testset.WINDOW), ids


def token_ids(path):
    """The ids of a text file as Hugging Face's tokenizer has them: no special tokens but those that the text names."""
    tokenizer = Tokenizer.from_file(str(testset.MODEL / "tokenizer.json"))
    return tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=False).ids


def log_probabilities(model, windows):
    """[windows, window - 1, vocabulary] in f32; the last position of a window predicts nothing that counts."""
    return np.stack([model.log_probabilities(window.tolist())[:-1] for window in windows])


def losses(log_p, windows):
    """[windows, window - 1] negative log-likelihoods in nats."""
    return -np.take_along_axis(log_p, windows[:, 1:, None], axis=2)[..., 0].astype(np.float64)


def divergences(log_p, log_q):
    """[windows, window - 1] values of KL(p || q) in nats."""
    pairs = ((p.astype(np.float64), q) for p, q in zip(log_p, log_q))
    return np.stack([(np.exp(p) * (p - q)).sum(axis=1) for p, q in pairs])


def standard_error(values):
    """Of the mean of [windows, predictions], from the spread of the windows' means."""
    means = values.mean(axis=1)
    return float(means.std(ddof=1) / np.sqrt(len(means)))


def compare(log_p, log_q, windows):
    """The measures of a quantised model q against the original p, as a result row has them."""
    nll, original = losses(log_q, windows), losses(log_p, windows)
    kl = divergences(log_p, log_q)
    return {
        "nll": float(nll.mean()),
        "nats_lost": float((nll - original).mean()),
        "nats_lost_se": standard_error(nll - original),
        "kl": float(kl.mean()),
        "kl_se": standard_error(kl),
        "kl_p99": float(np.quantile(kl, 0.99)),
        "top1": float((log_p.argmax(axis=2) == log_q.argmax(axis=2)).mean()),
    }
