"""Answers in batches, written or chosen among labels."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cot_jax.data.batches import Ragged, evaluation_rows
from cot_jax.data.shapes import Cost, Shape, cheapest, choose_shapes
from cot_jax.data.tokenizer import Tokenizer
from cot_jax.data.views import View, answer_of
from cot_jax.models.student import Params, Student
from cot_jax.training.sharding import by_example, replicated

Generate = Callable[[Params, np.ndarray, np.ndarray], jax.Array]


def make_generate(student: Student, mesh: Mesh, max_new_tokens: int, beams: int) -> Generate:
    """Returns the jitted (params, input_ids_BS, input_length_B) -> tokens (B, max_new_tokens).

    They are greedy or, with several beams, the best of a beam search.
    """

    def generate(params, input_ids_BS, input_length_B):
        if beams == 1:
            return student.generate(params, input_ids_BS, input_length_B, max_new_tokens)
        tokens_BKT, _ = student.beam_search(params, input_ids_BS, input_length_B, max_new_tokens, beams=beams)
        return tokens_BKT[:, 0]

    return _jit(generate, mesh)


def make_choose(student: Student, mesh: Mesh, labels: Ragged, pad_id: int) -> Generate:
    """Returns the jitted (params, input_ids_BS, input_length_B) -> tokens (B, T) of the likeliest label.

    That is the highest probability, not normalised by length: the labels are all there is to say.
    """
    rows = labels.take(np.arange(len(labels)), labels.lengths.max(), pad_id)
    ids_LT, length_L = map(jnp.asarray, rows)

    def choose(params, input_ids_BS, input_length_B):
        log_prob_BL = student.score(params, input_ids_BS, input_length_B, ids_LT, length_L)
        return ids_LT[jnp.argmax(log_prob_BL, axis=1)]

    return _jit(choose, mesh)


def _jit(generate: Generate, mesh: Mesh) -> Generate:
    return jax.jit(
        generate,
        in_shardings=(replicated(mesh), by_example(mesh), by_example(mesh)),
        out_shardings=replicated(mesh),
    )


def question_shapes(questions: Ragged, batch_size: int, max_shapes: int, cost: Cost) -> list[Shape]:
    """Returns the input widths, (S,) each, that the batches of `questions` are best padded to."""
    longest = [questions.lengths[rows[:1]] for rows in evaluation_rows(questions.lengths, batch_size)]
    return choose_shapes(np.array(longest), cost, max_shapes)[0]


def answer_questions(
    generate: Generate,
    params: Params,
    questions: Ragged,
    view: View,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    shapes: Sequence[Shape],
) -> list[str]:
    """Returns the student's answers, in the order of `questions`; `shapes` are input widths, (S,) each."""
    batches = list(evaluation_rows(questions.lengths, batch_size))
    # Dispatched all at once: the device never waits for the host to decode.
    generated = []
    for rows in batches:
        # Longest first: the first row is the widest.
        (width,) = cheapest(shapes, questions.lengths[rows[:1]])
        generated.append(generate(params, *questions.take(rows, width, tokenizer.pad_id)))
    answers = [""] * len(questions)
    for rows, tokens_BT in zip(batches, generated, strict=True):
        for row, tokens in zip(rows, np.asarray(tokens_BT), strict=True):
            if row >= 0:
                answers[row] = answer_of(view, tokenizer.decode(tokens.tolist()))
    return answers
