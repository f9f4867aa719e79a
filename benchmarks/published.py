"""The published training step in PyTorch with transformers' T5: as released, or tuned.

Hsieh et al. 2023 and Chen et al. 2024, released code: one forward per view, HF's cross-entropies,
alpha and 1 - alpha; MI as `CrossEntropyLoss(max_t softmax(rationale), max_t softmax(label).detach())`.
"""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import T5ForConditionalGeneration

from benchmarks.workload import ALPHA, BETA, DROPOUT
from cot_jax.batch import Batch, Tokens, ViewArrays
from cot_jax.config import Config

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

Tensors = dict[str, dict[str, torch.Tensor]]


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def peak_bytes() -> int | None:
    """The most memory PyTorch has held on the GPU; None on CPU, where it does not count."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def load_model(directory: Path, attention: str) -> T5ForConditionalGeneration:
    model: Any = T5ForConditionalGeneration.from_pretrained(
        directory, attn_implementation=attention, dropout_rate=DROPOUT, dtype=torch.float32
    )
    return model.to(device())


class TorchStep:
    """One update of the published recipe.

    Args:
      directory: the weights, as transformers saves them.
      tuned: sdpa, fused AdamW and, on a GPU, bfloat16 autocast; else eager float32 as released.
      compile_as: None, or what `torch.compile` takes as `dynamic`.
    """

    def __init__(self, directory: Path, method: str, *, tuned: bool, compile_as: bool | None = None):
        torch.set_flush_denormal(True)
        self._method = method
        self._model = load_model(directory, "sdpa" if tuned else "eager")
        self._forward: Any = self._model
        if compile_as is not None:
            torch._dynamo.config.recompile_limit = 64
            self._forward = torch.compile(self._model, dynamic=compile_as)
        self.dtype = "bfloat16" if tuned and device().type == "cuda" else "float32"
        self.describe = f"{self.dtype}, {'sdpa, fused AdamW' if tuned else 'eager attention'}" + (
            ", torch.compile" if compile_as is not None else ""
        )
        published = Config().resolved({}).optimizer
        self._clip_norm = published.clip_norm
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(),
            lr=published.learning_rate,
            betas=(published.b1, published.b2),
            eps=published.eps,
            weight_decay=published.weight_decay,
            fused=True if tuned else None,
        )
        self._schedule = transformers.get_linear_schedule_with_warmup(self._optimizer, 0, 10_000)

    def tensors(self, batch: Batch) -> Tensors:
        """A batch of one group as transformers wants it, in the host's memory, padded to its longest.

        bfloat16 gets widths that are multiples of 8, as tensor cores like it.
        """
        multiple = 8 if self.dtype == "bfloat16" else 1
        return {name: _tensors(view, multiple) for name, view in batch.views.items()}

    def loss_and_norm(self, batch: Tensors) -> tuple[float, float]:
        """The loss without dropout and the norm of its gradient."""
        self._model.eval()
        self._forward, compiled = self._model, self._forward
        loss, norm = self._backward(batch)
        self._forward = compiled
        self._optimizer.zero_grad()
        return loss.item(), norm.item()

    def __call__(self, batch: Tensors) -> torch.Tensor:
        self._model.train()
        loss, _ = self._backward(batch)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        return loss

    def _backward(self, batch: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        half = (
            torch.autocast("cuda", torch.bfloat16) if self.dtype == "bfloat16" else contextlib.nullcontext()
        )
        with half:
            loss = self._loss(batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip_norm)
        return loss.detach(), norm

    def _loss(self, batch: Tensors) -> torch.Tensor:
        found = {
            name: self._forward(**{key: value.to(device(), non_blocking=True) for key, value in view.items()})
            for name, view in batch.items()
        }
        if self._method == "standard":
            return found["label"].loss
        predict, explain = found["predict"], found["explain"]
        loss = ALPHA * predict.loss + (1 - ALPHA) * explain.loss
        if self._method == "mi":
            # As far as the longest target only, which is where the released code stops padding.
            p, q = (
                out.logits[:, : (batch[name]["labels"] >= 0).sum(1).max()].softmax(-1).max(-2).values
                for name, out in found.items()
            )
            loss = loss + BETA * torch.nn.functional.cross_entropy(q, p.detach())
        return loss


def _tensors(view: ViewArrays, multiple: int) -> dict[str, torch.Tensor]:
    ids, mask = rectangle(view.inputs, multiple)
    targets, _ = rectangle(view.targets, multiple)
    learned = np.arange(targets.shape[1]) < view.learned[0][:, None]
    arrays = {"input_ids": ids, "attention_mask": mask, "labels": np.where(learned, targets, -100)}
    return {name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}


def widths(batch: Tensors) -> np.ndarray:
    """(views, 2) of inputs and targets."""
    return np.array([(view["input_ids"].shape[1], view["labels"].shape[1]) for view in batch.values()])


def rectangle(tokens: Tokens, multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The sequences of one group as rows, padded with 0 to the longest or the next multiple; what is real."""
    (length_E,) = tokens.length
    real_ES = np.arange(-(-length_E.max() // multiple) * multiple) < length_E[:, None]
    ids_ES = np.zeros(real_ES.shape, np.int32)
    ids_ES[real_ES] = tokens.ids[0, : length_E.sum()]
    return ids_ES, real_ES
