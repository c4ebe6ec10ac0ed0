"""Models in files: `model.save_pretrained(folder)`, `SegmentationModel.from_pretrained(folder or name on the hub)`.

A folder holds `config.json`, what `model.config()` returns, and `model.safetensors`. It is huggingface_hub's
`PyTorchModelHubMixin`, whose keyword arguments and `push_to_hub` these have, with two differences: any model's class
loads any model, by the name in the configuration, and weights that do not fit are an error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

MISSING = "huggingface_hub and safetensors are needed for this: pip install 'prosma-ops[hub]'"

if TYPE_CHECKING:
    from huggingface_hub import PyTorchModelHubMixin
else:
    try:
        from huggingface_hub import PyTorchModelHubMixin
    except ImportError:

        class PyTorchModelHubMixin:
            """Stands in for that of huggingface_hub where it is not installed, and says so when it is used."""

            def __init_subclass__(cls, **_: Any) -> None:
                super().__init_subclass__()

            def save_pretrained(self, *_: Any, **__: Any) -> None:
                raise ImportError(MISSING)

            @classmethod
            def from_pretrained(cls, *_: Any, **__: Any) -> Any:
                raise ImportError(MISSING)

            push_to_hub = save_pretrained


class Pretrained(PyTorchModelHubMixin, library_name="prosma-ops", tags=["image-segmentation"], license="apache-2.0"):
    """What makes a model one that goes into a folder, or onto the hub, and back."""

    def config(self) -> dict[str, Any]:
        raise NotImplementedError

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        (save_directory / "config.json").write_text(json.dumps(self.config(), indent=2) + "\n")

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        config: Mapping[str, Any] | None = None,
        map_location: str = "cpu",
        strict: bool = True,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **changes: Any,
    ) -> Any:
        from .registry import create_model
        from .skeleton import SegmentationModel

        if config is None:
            raise FileNotFoundError(f"{model_id} has no config.json; `save_pretrained` writes one")
        model = create_model(**{**config, **changes})
        if not issubclass(type(model), cls):
            raise TypeError(
                f"{model_id} holds a {type(model).__name__}, not a {cls.__name__}; "
                f"{SegmentationModel.__name__}.from_pretrained loads any model"
            )
        if os.path.isdir(model_id):
            path = os.path.join(model_id, "model.safetensors")
        else:
            from huggingface_hub import hf_hub_download

            path = hf_hub_download(
                repo_id=model_id,
                filename="model.safetensors",
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                token=token,
                local_files_only=local_files_only,
            )
        return cls._load_as_safetensor(model, path, map_location, strict)
