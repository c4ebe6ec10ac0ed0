"""Any encoder of timm that makes features at strides 4, 8, 16 and 32, as an encoder of the skeleton."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..nn.layers import laid_out_like, positive_integer
from .skeleton import Encoder

STRIDES = (4, 8, 16, 32)
COLOURS = 3  # what the encoders of timm were trained on


def import_timm() -> Any:
    """timm, or an ImportError that says how to get it, or why it does not import."""
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise ImportError(
            "this needs timm, which is not installed: pip install 'prosma-ops[emcad]', or take encoder='convolutional'"
        ) from error
    except RuntimeError as error:  # "operator torchvision::nms does not exist"
        raise ImportError(
            f"timm does not import ({error}): torchvision is a build for another torch; install the one that fits"
        ) from error


class TimmEncoder(Encoder):
    """The features of a network of timm, at strides 4, 8, 16 and 32.

    Arguments:
        name: by which timm knows it, "pvt_v2_b2" or "resnet50", say.
        in_channels: of the image. Other than 3, a 1x1 convolution, normalized and rectified, makes 3 of them first,
            as EMCAD has it for grey images; so pretrained weights fit any image.
        pretrained: whether timm loads (and, if need be, downloads) its weights.
        options: more keyword arguments of `timm.create_model`, {"drop_path_rate": 0.1}, say.
    """

    strides = STRIDES

    def __init__(
        self, name: str, in_channels: int, *, pretrained: bool = False, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        positive_integer("in_channels", in_channels)
        self.body = _body(name, pretrained, dict(options or {}))
        self.channels = tuple(self.body.feature_info.channels())
        self.to_colours: nn.Module = nn.Identity()
        if in_channels != COLOURS:
            self.to_colours = nn.Sequential(
                nn.Conv2d(in_channels, COLOURS, 1), nn.BatchNorm2d(COLOURS), nn.ReLU(inplace=True)
            )
        self._channels_come_last = getattr(self.body, "output_fmt", "NCHW") == "NHWC"

    def forward(self, image: Tensor) -> list[Tensor]:
        features = self.body(self.to_colours(image))
        if self._channels_come_last:
            features = [values.permute(0, 3, 1, 2) for values in features]
        return [laid_out_like(values, image) for values in features]


def _body(name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    timm = import_timm()
    known = timm.list_models(name.partition(".")[0])
    if not known:
        raise ValueError(f"encoder is {name!r}; it must be 'convolutional' or a name that timm.list_models() holds")
    # The last four: convolutional networks have features at stride 2 as well, which no pyramid transformer has.
    body = timm.create_model(name, pretrained=pretrained, features_only=True, out_indices=(-4, -3, -2, -1), **options)
    found = tuple(body.feature_info.reduction())
    if found != STRIDES:
        raise ValueError(f"encoder is {name!r}, whose last features have strides {found}; they must be {STRIDES}")
    return body
