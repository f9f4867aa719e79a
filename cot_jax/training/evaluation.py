"""Accuracy by batched greedy generation."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from cot_jax.data.batches import Ragged, choose_widths, evaluation_rows, width_for
from cot_jax.data.tokenizer import Tokenizer
from cot_jax.data.views import View, answer_of
from cot_jax.models.student import Params, Student
from cot_jax.training.sharding import by_example, replicated

Generate = Callable[[Params, np.ndarray, np.ndarray], jax.Array]


def make_generate(student: Student, mesh: Mesh, max_new_tokens: int) -> Generate:
    """Returns the jitted (params, input_ids_BS, input_length_B) -> tokens (B, max_new_tokens)."""
    return jax.jit(
        functools.partial(student.generate, max_new_tokens=max_new_tokens),
        in_shardings=(replicated(mesh), by_example(mesh), by_example(mesh)),
        out_shardings=replicated(mesh),
    )


def answer_questions(
    generate: Generate,
    params: Params,
    questions: Ragged,
    view: View,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    max_buckets: int,
) -> list[str]:
    """Returns the student's answers, in the order of `questions`."""
    widths = choose_widths(questions.lengths, 1, max_buckets)
    batches = list(evaluation_rows(questions.lengths, batch_size))
    # Dispatched all at once: the device never waits for the host to decode.
    generated = []
    for rows in batches:
        # Longest first: the first row is the widest.
        width = width_for(widths, questions.lengths[rows[0]])
        generated.append(generate(params, *questions.take(rows, width, tokenizer.pad_id)))
    answers = [""] * len(questions)
    for rows, tokens_BT in zip(batches, generated, strict=True):
        for row, tokens in zip(rows, np.asarray(tokens_BT), strict=True):
            if row >= 0:
                answers[row] = answer_of(view, tokenizer.decode(tokens.tolist()))
    return answers
