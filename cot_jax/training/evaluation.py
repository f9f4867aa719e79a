"""Answers in batches, written or chosen among labels."""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cot_jax.answers import programs
from cot_jax.answers.programs import Interpreter
from cot_jax.data.batches import Ragged, evaluation_rows
from cot_jax.data.shapes import Cost, Shape, cheapest, choose_shapes
from cot_jax.data.views import View, answer_of
from cot_jax.models.generation import Sampling, written_length
from cot_jax.models.student import Params, Student
from cot_jax.text import codec
from cot_jax.text.tokenizer import Tokenizer
from cot_jax.training.mesh import by_example, replicated, spread

# (params, input_ids_BS, input_length_B) -> arrays (B, ...)
Ask = Callable[[Params, np.ndarray, np.ndarray], Any]
# -> tokens (B, ..., T) and their log-probabilities (B, ...)
Generate = Callable[[Params, np.ndarray, np.ndarray], tuple[jax.Array, jax.Array]]

# 2**32 divided by the golden ratio, an odd number: its powers are as good as drawn.
_GOLDEN = np.uint32(0x9E3779B1)


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a student wrote, in the order of the questions; where it drew several, they are next to another.

    Attributes:
      texts: N, all that was written.
      answers: N, what they answer (`views.answer_of`); the texts of a view that answers nothing.
      failures: how many answer nothing, by why.
      log_probs: (N,) float32, of all that was written, the end included, under the student's distribution.
        A view that writes a rationale before the answer has that in it, too.
      lengths: (N,), how many tokens that is.
      cut: how many of them had not ended at the most tokens allowed.
    """

    texts: list[str]
    answers: list[str]
    failures: collections.Counter[str]
    log_probs: np.ndarray
    lengths: np.ndarray
    cut: int


def make_generate(student: Student, mesh: Mesh, max_new_tokens: int, beams: int) -> Generate:
    """Returns the jitted (params, input_ids_BS, input_length_B) -> (tokens (B, max_new_tokens), log_prob_B).

    They are greedy or, with several beams, the best of a beam search.
    """

    def generate(params, input_ids_BS, input_length_B):
        if beams == 1:
            return student.generate(params, input_ids_BS, input_length_B, max_new_tokens)
        found = student.beam_search(params, input_ids_BS, input_length_B, max_new_tokens, beams=beams)
        tokens_BT, score_B = (best[:, 0] for best in found)
        # A score is the mean over the tokens: the length penalty is 1.
        return tokens_BT, score_B * written_length(tokens_BT, student.eos_id)

    return _jit(generate, mesh)


def make_sample(
    student: Student, mesh: Mesh, max_new_tokens: int, samples: int, sampling: Sampling, seed: int
) -> Generate:
    """Returns the jitted (params, input_ids_BS, input_length_B) -> (tokens_BKT, log_prob_BK) of K samples.

    They are a function of question and seed, whatever else is asked and in whatever order.
    """

    def sample(params, input_ids_BS, input_length_B):
        hash_B = _hash(input_ids_BS, input_length_B)
        key_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), hash_B)
        inputs = (params, input_ids_BS, input_length_B, max_new_tokens, key_B)
        return student.sample(*inputs, samples=samples, sampling=sampling)

    return _jit(sample, mesh)


def _hash(ids_BS: jax.Array, length_B: jax.Array) -> jax.Array:
    """(B,) uint32, the same whatever the padding."""
    S = ids_BS.shape[1]
    powers_S = np.cumprod(np.full(S, _GOLDEN), dtype=np.uint32)
    terms_BS = (ids_BS.astype(jnp.uint32) + 1) * powers_S[None, :]
    return jnp.sum(terms_BS, axis=1, where=jnp.arange(S)[None, :] < length_B[:, None], dtype=jnp.uint32)


def make_score(student: Student, mesh: Mesh, labels: Ragged, pad_id: int) -> Ask:
    """Returns the jitted (params, input_ids_BS, input_length_B) -> log_prob_BL of every label."""
    ids_LT, length_L = _padded(labels, pad_id)

    def score(params, input_ids_BS, input_length_B):
        return student.score(params, input_ids_BS, input_length_B, ids_LT, length_L)

    return _jit(score, mesh)


def make_choose(student: Student, mesh: Mesh, labels: Ragged, pad_id: int) -> Generate:
    """Returns the jitted (params, input_ids_BS, input_length_B) -> (tokens_BT, log_prob_B) of a label each.

    It is the likeliest, not normalised by length: the labels are all there is to say.
    """
    ids_LT, length_L = _padded(labels, pad_id)

    def choose(params, input_ids_BS, input_length_B):
        log_prob_BL = student.score(params, input_ids_BS, input_length_B, ids_LT, length_L)
        return ids_LT[jnp.argmax(log_prob_BL, axis=1)], jnp.max(log_prob_BL, axis=1)

    return _jit(choose, mesh)


def _padded(labels: Ragged, pad_id: int) -> tuple[jax.Array, jax.Array]:
    ids_LT, length_L = labels.take(np.arange(len(labels)), labels.lengths.max(), pad_id)
    return jnp.asarray(ids_LT), jnp.asarray(length_L)


def _jit(ask: Ask, mesh: Mesh) -> Ask:
    """Returns `ask` jitted, parameters as they lie, each row where its example is, the result everywhere."""
    rows = by_example(mesh)
    jitted = jax.jit(ask, in_shardings=(None, rows, rows), out_shardings=replicated(mesh))

    def spread_and_ask(params, input_ids_BS, input_length_B):
        return jitted(params, *spread((input_ids_BS, input_length_B), rows))

    return spread_and_ask


def question_shapes(questions: Ragged, batch_size: int, max_shapes: int, cost: Cost) -> list[Shape]:
    """Returns the input widths, (S,) each, that the batches of `questions` are best padded to."""
    longest = [questions.lengths[rows[:1]] for rows in evaluation_rows(questions.lengths, batch_size)]
    return choose_shapes(np.array(longest), cost, max_shapes)[0]


def ask_all(
    ask: Ask,
    params: Params,
    questions: Ragged,
    *,
    batch_size: int,
    shapes: Sequence[Shape],
    pad_id: int,
) -> Any:
    """Returns what `ask` gives, NumPy arrays (N, ...) in the order of `questions`.

    Args:
      shapes: input widths, (S,) each.
    """
    batches = list(evaluation_rows(questions.lengths, batch_size))
    # Dispatched all at once: the device never waits for the host.
    given = []
    for rows in batches:
        # Longest first: the first row is the widest.
        (width,) = cheapest(shapes, questions.lengths[rows[:1]])
        given.append(ask(params, *questions.take(rows, width, pad_id)))
    order = np.concatenate(batches)
    place = np.argsort(order)[np.sum(order < 0) :]
    return jax.tree.map(lambda *parts: np.concatenate([np.asarray(part) for part in parts])[place], *given)


def answer_questions(
    generate: Generate,
    params: Params,
    questions: Ragged,
    view: View,
    tokenizer: Tokenizer,
    *,
    spelled: bool,
    batch_size: int,
    shapes: Sequence[Shape],
    interpreter: Interpreter = programs.run,
) -> Answers:
    """Returns the student's answers to `questions`; `shapes` as in `ask_all`.

    `spelled` says whether it writes as `text.codec` spells, `interpreter` runs its programs.
    """
    tokens, log_prob = ask_all(
        generate, params, questions, batch_size=batch_size, shapes=shapes, pad_id=tokenizer.pad_id
    )
    tokens_NT = tokens.reshape(-1, tokens.shape[-1])
    texts = [tokenizer.decode(tokens_T) for tokens_T in tokens_NT.tolist()]
    if spelled:
        texts = [codec.decode(text) for text in texts]
    read = [answer_of(view, text, interpreter) for text in texts]
    return Answers(
        texts,
        answers=[reading.answer for reading in read],
        failures=collections.Counter(reading.failure for reading in read if reading.failure),
        log_probs=log_prob.ravel(),
        lengths=written_length(tokens_NT, tokenizer.eos_id),
        cut=int(np.sum(~np.any(tokens_NT == tokenizer.eos_id, axis=1))),
    )
