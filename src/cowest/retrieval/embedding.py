"""Embeddings by any Hugging Face encoder or causal language model, through transformers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from cowest.errors import MissingExtraError, ModelNotFoundError
from cowest.run.progress import no_hub_bars

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

MAX_TOKENS = 512
"""Longer texts are cut there, or at the model's own window where that is shorter."""


class TransformerEmbedder:
    """Implements :class:`cowest.retrieval.dense.Embedder`: the mean of the last layer over a text's tokens, length 1.

    ``model`` is a folder or a hub name, as for :class:`cowest.models.local.LocalChatModel`; safetensors only, and no code of a
    checkpoint is run. The mean is what sentence encoders (E5, GTE, all-MiniLM) are trained for; a causal model works as
    well, less sharply. Raises ModelNotFoundError, or MissingExtraError without torch.
    """

    def __init__(self, model: str, *, device: str = "auto", batch_size: int = 32, max_tokens: int = MAX_TOKENS) -> None:
        try:
            import torch
            from transformers import AutoModel, AutoTokenizer
        except ImportError as error:
            raise MissingExtraError(f"dense retrieval needs {error.name}: pip install 'cowest[local]'") from None
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._tokenizer = cast(
                "PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(model, trust_remote_code=False)
            )
            with no_hub_bars():
                loaded = AutoModel.from_pretrained(model, use_safetensors=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelNotFoundError(f"{model}: the embedding model cannot be loaded: {reason}") from None
        if loaded.config.is_encoder_decoder:
            loaded = loaded.get_encoder()
        self._model = loaded.to(device).eval()
        self._tokenizer.padding_side = "right"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        window = getattr(loaded.config.get_text_config(), "max_position_embeddings", None) or max_tokens
        self._max_tokens, self._batch_size = min(max_tokens, window), batch_size
        self._lock = threading.Lock()  # a tokenizer that pads may not be used by two threads

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """A float32 array (texts, dimensions); texts of like length share a batch, which changes nothing but the time."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        rows: list[np.ndarray] = []
        with self._lock:
            for start in range(0, len(order), self._batch_size):
                rows += list(self._batch([texts[i] for i in order[start : start + self._batch_size]]))
        found = np.empty((len(rows), len(rows[0]) if rows else 0), dtype=np.float32)
        for i, row in zip(order, rows, strict=True):
            found[i] = row
        return found

    def _batch(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        inputs = self._tokenizer(
            list(texts), return_tensors="pt", padding=True, truncation=True, max_length=self._max_tokens
        )
        mask: torch.Tensor = inputs["attention_mask"].to(self._model.device)
        ids = inputs["input_ids"].to(self._model.device)
        if ids.shape[1] == 0:  # no text has a token: near to nothing
            return np.zeros((len(texts), self._model.config.get_text_config().hidden_size), dtype=np.float32)
        with torch.inference_mode():
            states: torch.Tensor = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            kept = mask[:, :, None].to(states.dtype)
            means = (states * kept).sum(1) / kept.sum(1).clamp(min=1)
            unit = torch.nn.functional.normalize(means, dim=-1)
        vectors: np.ndarray = unit.cpu().numpy()
        return vectors
