"""The table of families, and how students are built, read and saved."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from cot_jax.batch import Texts
from cot_jax.errors import UserError
from cot_jax.files import Shape, misfit
from cot_jax.models import bert, deberta, llama, pretrained, t5
from cot_jax.models.base import Student
from cot_jax.models.bert import Bert
from cot_jax.models.deberta import Deberta
from cot_jax.models.llama import Llama
from cot_jax.models.t5 import T5
from cot_jax.models.weights import Params

# model_type of config.json -> the class of its students
FAMILIES: dict[str, Any] = (
    {"t5": T5}
    | dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), Llama)
    | dict.fromkeys(("bert", "roberta", "albert"), Bert)
    | dict.fromkeys(("deberta", "deberta-v2"), Deberta)
)
_ROPE = {"rope_type?": str, "type?": str, str: object}
_SIZES, _LAYERS, _IDS = range(1, 2**24), range(1, 2**12), range(-1, 2**24)
# Fields of config.json in any family. Values out of any model's range are refused before an array of that
# size is made. Each family checks its own fields further.
_ARCHITECTURE: Shape = {
    "model_type?": str,
    **dict.fromkeys(
        (
            "vocab_size?", "hidden_size?", "intermediate_size?", "num_attention_heads?",
            "num_key_value_heads?", "head_dim?", "max_position_embeddings?", "d_model?", "d_kv?", "d_ff?",
            "num_heads?",
        ),
        _SIZES,
    ),
    **dict.fromkeys(("num_hidden_layers?", "num_layers?", "num_decoder_layers?"), _LAYERS),
    **dict.fromkeys(("pad_token_id?", "bos_token_id?", "decoder_start_token_id?", "embedding_size?"), _IDS),
    "num_hidden_groups?": range(2**12),
    "type_vocab_size?": range(2**24),
    "relative_attention_num_buckets?": range(4, 2**16),
    "relative_attention_max_distance?": _SIZES,
    "position_buckets?": _IDS,
    "max_relative_positions?": _IDS,
    "sliding_window?": _SIZES,
    "max_window_layers?": range(2**12),
    "eos_token_id?": (_IDS, [_IDS]),
    "id2label?": {str: (str, int)},
    "architectures?": [str],
    "layer_types?": [str],
    "pos_att_type?": (str, [str]),
    "quantization_config?": dict,
    "use_sliding_window?": bool,
    "rope_parameters?": _ROPE,
    "rope_scaling?": _ROPE,
    **dict.fromkeys(("feed_forward_proj?", "hidden_act?", "hidden_activation?"), str),
}  # fmt: skip
PRESETS: dict[str, Any] = t5.PRESETS | llama.PRESETS | bert.PRESETS | deberta.PRESETS


@dataclasses.dataclass(frozen=True)
class Options:
    """How a student computes; not part of the architecture.

    Attributes:
      dropout_rate: replaces the architecture's rate.
      dtype: as in `Student`.
      platform: on which it trains; if the family gains from it (`Student.unrolls`), training unrolls loops
        over layers.
      remat: as in `Student`; auto = none if layers are unrolled, else elementwise: a loop writes what it
        keeps to memory, which takes longer than to compute it again.
    """

    dropout_rate: float = 0.0
    dtype: DTypeLike = np.float32
    platform: str = ""
    remat: str = "none"


def family(pretrained_path: str, preset: str) -> Any:
    """The class of the student in a directory or Hub repository (by its config.json), or of a preset.

    Raises:
      UserError: see `build` and `from_scratch`.
    """
    if pretrained_path:
        return type(without_weights(pretrained_path, Options()))
    return _class_of(_preset(preset))


def build(json: Mapping[str, Any], options: Options) -> Student:
    """The student of a config.json, by its model_type.

    Raises:
      UserError: the model_type or a value is unknown or wrong.
    """
    if wrong := misfit(json, _ARCHITECTURE):
        raise UserError(f"config.json: {wrong}")
    if (kind := json.get("model_type")) not in FAMILIES:
        raise UserError(f"config.json: model_type is {kind!r}, known: {', '.join(FAMILIES)}")
    return _with_options(FAMILIES[kind].config_class.from_json(json), options)


def from_scratch(preset: str, *, texts: Texts, options: Options) -> Student:
    """An untrained student for some texts.

    The embedding has one row per token, rounded up to a multiple of 128 as in T5 (32,100 -> 32,128), so it
    splits evenly over devices.

    Raises:
      UserError: no such preset.
    """
    config = _preset(preset).resized(-(-texts.size // 128) * 128, texts.pad_id)
    return _with_options(config.for_texts(texts), options)


def from_pretrained(
    path_or_id: str, options: Options, texts: Texts | None = None, layers: int = 0
) -> tuple[Student, Params, list[str]]:
    """The student of a directory or Hub repository, its parameters as NumPy arrays, and lines to report.

    A head that differs from the embedding is used, whatever config.json says about tying. A classifier of
    other classes is not read; one of the same classes in another order is permuted; that of multiple choice
    scores any choice, whatever its name.

    Args:
      texts: the texts it will read and write; None: as in config.json.
      layers: take the first `layers` layers; 0: all.

    Raises:
      UserError: see `build` and `pretrained.read`.
    """
    directory = pretrained.fetch(path_or_id)
    saved = _built(str(directory), options)
    student = _adapted(saved, texts, layers)
    read = _tied(student, False)
    leftovers, report = list(student.leftovers), []
    classes = student.format == "classes"
    same = classes and bool(student.labels) and _columns(saved.config) == _columns(student.config)
    if classes and not same:
        # RoBERTa's heads for classes and for multiple choice have tensors of different names.
        kept = {w.theirs for path, w in student.weights.items() if not path.startswith("classifier/")}
        leftovers += [re.escape(w.theirs) for w in saved.weights.values() if w.theirs not in kept]
        if saved.labels:
            report.append(
                f"{directory}: its classifier is not used, its classes are {', '.join(saved.labels)}"
            )
    params, found = pretrained.read(
        directory,
        read.weights,
        saved.aliases,  # of all layers
        leftovers,
        student.prefix,
        optional=student.optional,
        more_layers=bool(layers),
    )
    if classes:
        permuted = student.labels != saved.labels and not student.config.multiple_choice
        if same and permuted and "classifier" in params:
            order = [saved.labels.index(label) for label in student.labels]
            params["classifier"] = jax.tree.map(lambda leaf: leaf[..., order], params["classifier"])
        return student, params, [*report, *found]
    if not pretrained.is_tied(params):
        return read, params, found
    params.pop("head", None)
    return _tied(student, True), params, found


def _columns(config: Any) -> list[str] | None:
    """The classes of a classifier's columns, in any order; None: its one column scores any choice."""
    return None if config.multiple_choice else sorted(config.labels)


def _tied(student: Any, tied: bool) -> Student:
    if student.format == "classes":
        return student
    config = dataclasses.replace(student.config, tie_word_embeddings=tied)
    return dataclasses.replace(student, config=config)


def without_weights(
    path_or_id: str, options: Options, texts: Texts | None = None, layers: int = 0
) -> Student:
    """The student of `from_pretrained`, from config.json alone."""
    return _adapted(_built(path_or_id, options), texts, layers)


def _built(path_or_id: str, options: Options) -> Student:
    """The student of a directory's or repository's config.json, which errors name."""
    try:
        return build(pretrained.read_config(path_or_id), options)
    except UserError as error:
        if str(error).startswith("config.json:"):
            raise UserError(f"{path_or_id}/{error}") from None
        raise


def _adapted(student: Any, texts: Texts | None, layers: int) -> Student:
    """The student for some texts, whose special ids replace those of config.json, with its first layers."""
    config = student.config
    if layers:
        if layers > (most := config.num_hidden_layers):
            raise UserError(f"config.model.layers={layers}: the model has {most}")
        config = config.with_layers(layers)
    if texts:
        config = config.for_texts(texts)
    return dataclasses.replace(student, config=config)


def save(directory: Path, student: Student, params: Params) -> None:
    """Writes weights and a config.json that Transformers loads."""
    pretrained.write(directory, student.architecture(), student.weights, params)


def _with_options(config: Any, options: Options) -> Student:
    config = dataclasses.replace(config, dropout_rate=options.dropout_rate)
    of_family = _class_of(config)
    unroll, remat = of_family.unrolls(config, options.platform), options.remat
    if remat == "auto":
        remat = "none" if unroll else "elementwise"
    return of_family(config, options.dtype, unroll, remat)


def _preset(name: str) -> Any:
    if name not in PRESETS:
        raise UserError(f'config.model.preset: no "{name}"; choose one of {", ".join(PRESETS)}')
    return PRESETS[name]


def _class_of(config: Any) -> Any:
    (found,) = {family for family in FAMILIES.values() if family.config_class is type(config)}
    return found
