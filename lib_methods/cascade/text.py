"""Text embeddings: 77 tokens through T5, or through CLIP for the latent upscaler, and kept on disk.

An embedding is kept by the prompt, the encoder and its precision, so a known prompt never loads the encoder.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib_methods.cascade.folder import TOKENS, Part
from lib_methods.cascade.parts import Parts, load
from lib_methods.errors import CheckpointError, UserError, known_reason
from lib_methods.files import read_json
from lib_methods.safetensors import read_tensors, write_tensors

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "8 bit": torch.float16}
MOST_KEPT = 2000  # embeddings; T5-XXL's take 0.6 MB each
Warn = Callable[[str], object]


@dataclass(frozen=True)
class Encoder:
    """A text encoder, and how it is run. precision: a key of `DTYPES`."""

    part: Part
    device: torch.device
    precision: str

    @property
    def is_t5(self) -> bool:
        return self.part.config.get("model_type") == "t5"

    def normalised(self, prompt: str) -> str:
        """A prompt as the encoder gets it: IF was trained with small letters."""
        return prompt.lower().strip() if self.is_t5 else prompt

    def file(self, folder: Path, prompt: str) -> Path:
        """Where the embedding of a prompt is kept."""
        key = "\0".join((self.part.digest, self.precision, str(TOKENS), self.normalised(prompt)))
        return folder / f"{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:40]}.safetensors"


def embeddings(
    encoder: Encoder, prompts: Sequence[str], folder: Path, parts: Parts, warn: Warn = lambda text: None
) -> dict[str, Tensor]:
    """The embedding of each prompt, (1, T, D) on the CPU. folder: where they are kept. warn: told what was cut off.

    Raises UserError: a package that the tokenizer needs is missing, or a file is damaged.
    """
    found: dict[str, Tensor] = {}
    missing: list[str] = []
    for prompt in dict.fromkeys(prompts):
        kept = _kept(encoder.file(folder, prompt))
        if kept is None:
            missing.append(prompt)
        else:
            found[prompt] = kept[0]
            if kept[1]:
                warn(_cut(prompt, kept[1]))
    if not missing:
        return found
    tokenizer = load_tokenizer(encoder.part)
    loader = load_in_8_bits if encoder.precision == "8 bit" else load
    with parts.use(encoder.part, encoder.device, DTYPES[encoder.precision], loader) as module:
        for prompt in missing:
            ids, mask, cut = tokens(tokenizer, encoder.normalised(prompt))
            if cut:
                warn(_cut(prompt, cut))
            found[prompt] = encode(module, ids, mask if encoder.is_t5 else None, encoder.device)
            _keep(encoder.file(folder, prompt), found[prompt], cut, warn)
    return found


def load_tokenizer(part: Part) -> Any:
    """The tokenizer beside a text encoder. Raises UserError."""
    from transformers import AutoTokenizer

    folder = part.folder / "tokenizer"
    if not any((folder / name).is_file() for name in ("tokenizer.json", "spiece.model", "vocab.json")):
        raise CheckpointError(
            f"The folder {part.folder.name} has neither tokenizer/tokenizer.json nor tokenizer/spiece.model (for CLIP: "
            "vocab.json); download them."
        )
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # whatever a library raises at files that it cannot use
        with suppress(Exception):
            return unigram_tokenizer(folder / "tokenizer.json")
        if importlib.util.find_spec("sentencepiece") is None and not (folder / "tokenizer.json").is_file():
            raise UserError(
                "T5's tokenizer needs the package sentencepiece. Install it with: pip install sentencepiece"
            ) from error
        raise CheckpointError(
            f"The tokenizer in the folder {part.folder.name} cannot be read; download it again."
        ) from error


def unigram_tokenizer(file: Path) -> Any:
    """T5's tokenizer from a tokenizer.json that a newer library wrote: older ones cannot read it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    content = read_json(file)
    vocabulary = [(str(piece), float(score)) for piece, score in content["model"]["vocab"]]
    made = Tokenizer(models.Unigram(vocabulary, content["model"].get("unk_id", 2)))
    normalizer = content.get("normalizer") or {}
    if normalizer.get("type") == "Precompiled":
        made.normalizer = normalizers.Precompiled(base64.b64decode(normalizer["precompiled_charsmap"]))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    made.decoder = decoders.Metaspace()
    end = [piece for piece, _ in vocabulary].index("</s>")
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


def tokens(tokenizer: Any, prompt: str) -> tuple[Tensor, Tensor, str]:
    """Token ids and mask, (1, 77) each, and the text that did not fit."""
    options = {"padding": "max_length", "max_length": TOKENS, "truncation": True, "return_tensors": "pt"}
    made = tokenizer(prompt, **options)
    whole = tokenizer(prompt, padding="longest", return_tensors="pt").input_ids
    cut = ""
    if whole.shape[-1] > TOKENS:
        cut = str(tokenizer.decode(whole[0, TOKENS - 1 : -1])).strip()
    return made.input_ids, made.attention_mask, cut


@torch.no_grad()
def encode(module: nn.Module, ids: Tensor, mask: Tensor | None, device: torch.device) -> Tensor:
    """The last hidden states, (1, T, D), on the CPU."""
    return module(ids.to(device), attention_mask=None if mask is None else mask.to(device))[0].cpu()


def has_8_bits(device: torch.device) -> bool:
    """Whether a text encoder can be loaded in 8 bits there."""
    return device.type == "cuda" and all(importlib.util.find_spec(name) for name in ("bitsandbytes", "accelerate"))


def load_in_8_bits(part: Part, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """T5 in 8 bits, through transformers. Raises UserError."""
    if not has_8_bits(device):
        raise UserError("8 bit needs the packages bitsandbytes and accelerate, and an NVIDIA GPU. Choose bf16.")
    from transformers import BitsAndBytesConfig, T5EncoderModel

    name = part.weights.files[0].name
    variant = next((word for word in ("fp16", "bf16", "fp32") if f".{word}" in name), None)
    module = T5EncoderModel.from_pretrained(
        str(part.folder / part.name),
        variant=variant,
        use_safetensors=True,
        local_files_only=True,
        torch_dtype=dtype,
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        device_map={"": device},
    )
    return module.eval()


def _cut(prompt: str, cut: str) -> str:
    return f'The prompt "{prompt[:40]}..." is longer than {TOKENS} tokens. This was left out: "{cut}"'


def _kept(file: Path) -> tuple[Tensor, str] | None:
    """An embedding that is kept, and what was cut off; None where it must be made (again)."""
    if not file.is_file():
        return None
    try:
        tensors, metadata = read_tensors(file)
        found = tensors["embedding"]
    except (CheckpointError, KeyError):
        return None
    with suppress(OSError):
        file.touch()  # the last used stay longest
    return (found, metadata.get("cut", "")) if found.ndim == 3 and bool(found.isfinite().all()) else None


def _keep(file: Path, embedding: Tensor, cut: str, warn: Warn) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(file, {"embedding": embedding}, {"cut": cut} if cut else None, shared=True)
        kept = sorted(file.parent.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
        for old in kept[: max(0, len(kept) - MOST_KEPT)]:
            old.unlink(missing_ok=True)
    except OSError as error:
        warn(f"The text embedding could not be kept on disk. {known_reason(error) or error.strerror or ''}".strip())
