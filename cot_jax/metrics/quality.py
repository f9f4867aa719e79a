"""Quality of rationales: similarity to references, and its correlation with correctness."""

import importlib.util
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from cot_jax.errors import UserError, first_line

_MOST_CELLS = 5 * 10**7  # of ROUGE-L's table: 400 MB


def likeness(
    rationales: Sequence[str], references: Sequence[str]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Compares each rationale with its one reference; returns the measures of the corpus, and of each.

    `bleu` and `chrf`, in percent, are sacreBLEU's with its defaults (Post 2018; 13a tokens, exponential
    smoothing, effective order for the BLEU of one rationale). `rouge_l`, from 0 to 1, is rouge-score's F1
    without stemming (Lin 2004), for the corpus its mean; its tokens are words and numbers only.

    Raises:
      UserError: the libraries are not installed, or a pair, named by its number, is too long.
      ValueError: no rationales, or another number of references.
    """
    if not all(map(importlib.util.find_spec, ("sacrebleu", "rouge_score"))):
        raise UserError("rationale quality needs sacreBLEU and rouge-score: pip install 'cot-jax[quality]'")
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF

    if not rationales:
        raise ValueError("likeness of no rationales")
    pairs = list(zip(rationales, references, strict=True))
    for number, pair in enumerate(pairs, start=1):
        said, meant = (len(re.findall("[a-z0-9]+", text.lower())) for text in pair)
        if said * meant > _MOST_CELLS:
            raise UserError(
                f"rationale {number} of those with a reference has {said:,} words, its reference {meant:,}: "
                "its ROUGE-L takes gigabytes; leave it out"
            )
    bleu, chrf = BLEU(effective_order=True), CHRF()
    rouge = RougeScorer(["rougeL"], use_stemmer=False)
    each = {
        "bleu": [bleu.sentence_score(said, [meant]).score for said, meant in pairs],
        "chrf": [chrf.sentence_score(said, [meant]).score for said, meant in pairs],
        "rouge_l": [float(rouge.score(meant, said)["rougeL"].fmeasure) for said, meant in pairs],
    }
    corpus = {
        "bleu": BLEU().corpus_score(rationales, [references]).score,
        "chrf": chrf.corpus_score(rationales, [references]).score,
        "rouge_l": float(np.mean(each["rouge_l"])),
    }
    return corpus, each


def similarity(rationales: Sequence[str], references: Sequence[str], encoder: str) -> list[float]:
    """Returns the cosine similarity of each rationale and its reference in a sentence encoder.

    Args:
      encoder: Hugging Face repository id or directory. A text is the mean of its last hidden states over all
        tokens, including special ones: the default of Sentence Transformers (Reimers & Gurevych 2019). Longer
        texts than the encoder reads are truncated.

    Raises:
      UserError: PyTorch, which Transformers needs for it, is not installed, or `encoder` has no tokenizer, no
        safetensors, or no architecture that Transformers knows.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError("a sentence encoder runs in PyTorch: pip install torch, or leave --encoder out")
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(encoder, trust_remote_code=False)
        model = AutoModel.from_pretrained(encoder, use_safetensors=True, trust_remote_code=False).eval()
    except (OSError, ValueError) as error:
        why = first_line(error)
        raise UserError(f"{encoder}: not a sentence encoder that Transformers loads ({why})") from None
    if tokenizer.pad_token is None:  # as of many decoders; the mask excludes padding, whatever its token
        tokenizer.pad_token = tokenizer.eos_token
    most = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", math.inf))
    if model.config.is_encoder_decoder:
        model = model.get_encoder()

    def encode(texts: Sequence[str]) -> Any:
        tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=most, return_tensors="pt")
        hidden_BSD = model(**tokens).last_hidden_state
        mask_BS1 = tokens["attention_mask"][:, :, None]
        return (hidden_BSD * mask_BS1).sum(1) / mask_BS1.sum(1)

    cosines: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(rationales), 32):
            said, meant = (encode(texts[start : start + 32]) for texts in (rationales, references))
            cosines += torch.cosine_similarity(said, meant).tolist()
    return cosines


def correlations(quality: Sequence[float], correct: Sequence[bool]) -> dict[str, Any]:
    """Returns {"n", "pearson", "spearman"} of quality and correctness; each {"r", "p"} with a two-sided p.

    A coefficient is None if it is undefined or meaningless: either side is constant up to rounding, or there
    are fewer than three examples.
    """
    from scipy import stats

    x, y = np.asarray(quality, np.float64), np.asarray(correct, np.float64)
    found: dict[str, Any] = {"n": len(x), "pearson": None, "spearman": None}
    if len(x) < 3 or any(np.ptp(values) <= 1e-9 * np.abs(values).max() for values in (x, y)):
        return found
    for name, correlate in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        r, p = correlate(x, y)
        found[name] = {"r": float(r), "p": float(p)}
    return found
