"""Batched answers, generated or chosen among labels."""

import collections
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cot_jax.answers import programs
from cot_jax.answers.programs import Interpreter
from cot_jax.batch import Segments, Tokens
from cot_jax.data.batches import Ragged, evaluation_rows
from cot_jax.data.lengths import cheapest, needed
from cot_jax.data.views import View, answer_of
from cot_jax.models import decoding
from cot_jax.models.decoding import Sampling, is_end, written_length
from cot_jax.models.numerics import mix
from cot_jax.models.student import Student
from cot_jax.models.weights import Params
from cot_jax.text.formats import Format
from cot_jax.training.compiled import compiler_options
from cot_jax.training.mesh import by_example, group_count, leads, replicated, spread

# Between progress lines of a long evaluation.
_TELL_SECONDS = 20.0

# Batches that wait behind the one that is computed. Few, since an evaluation that stops waits for them.
_QUEUED = 1

# (params, questions or a batch of B = G * E examples) -> arrays (B, ...)
Ask = Callable[[Params, Any], Any]
# -> tokens (B, ..., T) and their log-probabilities (B, ...)
Generate = Callable[[Params, Tokens], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Answers:
    """A student's outputs, in the order of the questions; several samples of a question are adjacent.

    Attributes:
      texts: N outputs.
      answers: N, the answers in them (`views.answer_of`); the texts themselves for a view without answers.
      failures: number of outputs without an answer, by reason.
      log_probs: (N,) float32, of the whole output with its end token, under the student's distribution. The
        rationale before an answer is part of it.
      lengths: (N,), tokens of the output.
      cut: (N,) bool, whether an output reached the token limit.
      unmarked: number of answers read without a mark (`views.Reading`).
    """

    texts: list[str]
    answers: list[str]
    failures: collections.Counter[str]
    log_probs: np.ndarray
    lengths: np.ndarray
    cut: np.ndarray
    unmarked: int = 0


def make_generate(student: Student, mesh: Mesh, most: int, beams: int) -> Generate:
    """Returns the jitted (params, questions) -> (tokens (B, most), log_prob_B).

    Decoding is greedy, or with several beams the best of a beam search.
    """

    def generate(params, questions):
        prompt = student.prompt(params, questions, most, beams)
        if beams == 1:
            return decoding.greedy(prompt, most)
        tokens_BT, score_B = (best[:, 0] for best in decoding.beam_search(prompt, most, beams))
        # A score is the mean over the tokens.
        return tokens_BT, score_B * written_length(tokens_BT, student.ends)

    return jit_by_example(generate, mesh)


def make_sample(
    student: Student, mesh: Mesh, most: int, samples: int, sampling: Sampling, seed: int
) -> Generate:
    """Returns the jitted (params, questions) -> (tokens_BKT, log_prob_BK) of K samples.

    They are a function of question and seed, independent of other questions and of their order.
    """

    def sample(params, questions):
        key_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), _hash(questions))
        prompt = student.prompt(params, questions, most, samples)
        return decoding.sample(prompt, most, key_B, samples, sampling)

    return jit_by_example(sample, mesh)


def _hash(questions: Tokens) -> jax.Array:
    """(B,) uint32, a hash of each question's tokens and positions, however many of them are a prefix."""

    def terms(ids, position):
        return mix(jnp.asarray(ids).astype(jnp.uint32) + mix(position.astype(jnp.uint32)))

    segments = Segments.of(questions)
    shared = 0 if questions.prefix is None else questions.prefix.shape[1]
    term_GX = terms(questions.ids, shared + segments.position_GX)
    hash_GE = jnp.sum(segments.unpack(term_GX), axis=-1, dtype=jnp.uint32)
    if shared:
        term_GP = terms(questions.prefix, jnp.arange(shared)[None])
        hash_GE += jnp.sum(term_GP, axis=-1, dtype=jnp.uint32)[:, None]
    return hash_GE.reshape(-1)


def make_score(student: Student, mesh: Mesh, labels: Ragged) -> Ask:
    """Returns the jitted (params, questions) -> log_prob_BL of every label."""
    return jit_by_example(_scorer(student, labels)[0], mesh)


def make_choose(student: Student, mesh: Mesh, labels: Ragged) -> Generate:
    """Returns the jitted (params, questions) -> (tokens_BT, log_prob_B) of the most likely label.

    Not normalised by length: the labels are the only possible answers.
    """
    score, ids_LT = _scorer(student, labels)

    def choose(params, questions):
        log_prob_BL = score(params, questions)
        return ids_LT[jnp.argmax(log_prob_BL, axis=1)], jnp.max(log_prob_BL, axis=1)

    return jit_by_example(choose, mesh)


def _scorer(student: Student, labels: Ragged) -> tuple[Ask, jax.Array]:
    """Returns (params, questions) -> log_prob_BL, and the labels as rows (L, T)."""
    L, T = len(labels), int(labels.lengths.max())
    tokens = labels.tokens(np.arange(L), (T, T), student.pad_id, groups=L)  # each label is a group
    ids_LT, length_L = jnp.asarray(tokens.ids), jnp.asarray(tokens.length[:, 0])

    def score(params, questions):
        return decoding.score(student.prompt(params, questions, T), ids_LT, length_L)

    return score, ids_LT


def jit_by_example(ask: Ask, mesh: Mesh) -> Ask:
    """Returns `ask` jitted: parameters stay in place, each group is on its device, the result on all."""
    rows, platform = by_example(mesh), mesh.devices.flat[0].platform
    options = {} if platform == "cpu" else compiler_options(platform)
    jitted = jax.jit(ask, in_shardings=(None, rows), out_shardings=replicated(mesh), compiler_options=options)
    return lambda params, questions: jitted(params, spread(questions, rows))


def ask_in_batches(
    ask: Ask, params: Params, batches: Sequence[np.ndarray], make: Callable[[np.ndarray], Any]
) -> Any:
    """Returns the results of `ask`, NumPy arrays (N, ...) in the order of the row numbers.

    Args:
      batches: (B,) row numbers each; -1 is no row.
      make: row numbers -> what is asked.
    """
    asked = (ask(params, make(rows)) for rows in batches)
    queue = collections.deque(itertools.islice(asked, _QUEUED))
    order = np.concatenate(batches)
    place = np.argsort(order)[np.sum(order < 0) :]
    answered, told = [], time.monotonic()
    while queue:
        queue.extend(itertools.islice(asked, 1))  # first, so that the device does not wait for the host
        answered.append(jax.tree.map(np.asarray, queue.popleft()))
        if queue and time.monotonic() - told > _TELL_SECONDS:
            told, done = time.monotonic(), len(answered) * len(batches[0])
            if leads():
                print(f"answered {done:,} of {len(place):,} questions", file=sys.stderr)
    return jax.tree.map(lambda *parts: np.concatenate(parts)[place], *answered)


def ask_all(
    ask: Ask,
    params: Params,
    questions: Ragged,
    *,
    mesh: Mesh,
    batch_size: int,
    shapes: np.ndarray,
    pad_id: int,
) -> Any:
    """Returns the results of `ask`, NumPy arrays (N, ...) in the order of `questions`.

    Args:
      shapes: (shapes, 2), slots and widths of batches, as from `batches.question_shapes`.
    """
    groups = group_count(mesh)

    def tokens(rows):
        shape = shapes[cheapest(shapes, needed(questions.lengths_of(rows), groups))]
        return questions.tokens(rows, tuple(shape.tolist()), pad_id, groups)

    return ask_in_batches(ask, params, list(evaluation_rows(questions.lengths, batch_size)), tokens)


def require_positions(student: Student, inputs: Ragged) -> None:
    """
    Raises:
      UserError: an input, or a choice of one, is longer than the student can read.
    """
    longest = inputs.lengths.max(initial=0)
    if student.format == "classes" and student.config.multiple_choice:  # several sequences
        _, _, ids = inputs.arrays()
        begins = np.flatnonzero(ids == student.config.cls_token_id)
        longest = np.diff(begins, append=len(ids)).max(initial=0)
    student.require_length(int(longest))


def answer_questions(
    generate: Generate,
    params: Params,
    questions: Ragged,
    view: View,
    format: Format,
    *,
    student: Student,
    mesh: Mesh,
    batch_size: int,
    shapes: np.ndarray,
    interpreter: Interpreter = programs.run,
) -> Answers:
    """Returns the student's answers to `questions`; `shapes` as in `ask_all`, `interpreter` runs programs.

    Raises:
      UserError: a question is longer than the student can read.
    """
    require_positions(student, questions)
    tokens, log_prob = ask_all(
        generate, params, questions, mesh=mesh, batch_size=batch_size, shapes=shapes, pad_id=student.pad_id
    )
    tokens_NT = tokens.reshape(-1, tokens.shape[-1])
    texts = [format.decode(view.name, tokens_T) for tokens_T in tokens_NT.tolist()]
    read = [answer_of(view, text, interpreter) for text in texts]
    return Answers(
        texts,
        answers=[reading.answer for reading in read],
        failures=collections.Counter(reading.failure for reading in read if reading.failure),
        log_probs=log_prob.ravel(),
        lengths=written_length(tokens_NT, student.ends),
        cut=~np.any(is_end(tokens_NT, student.ends), axis=1),
        unmarked=sum(reading.unmarked for reading in read),
    )
