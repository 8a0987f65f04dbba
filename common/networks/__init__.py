"""Networks by description, as checkpoints have them; and the MLP of 2D toys. The U-Nets are in ``common.unet``."""

from __future__ import annotations

import functools
import inspect
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
import torch
from torch import Tensor, nn

from common.networks.generator_unet import GeneratorUNet
from common.runtime import checked
from common.unet import ONE_TIME, ConditionalUNet, Count, UNet, Whole, end_embedding

Activation = Literal["ELU", "GELU", "LeakyReLU", "Mish", "ReLU", "SELU", "SiLU", "Softplus", "Tanh"]


class MLP(nn.Module):
    """Fully connected net(x, t, y=None, r=None): (B, dim) -> (B, out_dim), with t appended to x.

    The defaults are the network of Tong et al.'s 2D experiments (2302.00482): 3 hidden layers of 64, SELU.

    Args:
        width, depth: Units of each hidden layer, and their number.
        num_classes: Classes of y, appended one-hot; 0: unconditional. y = num_classes, or y = None, means "no label".
        out_dim: Features of the output; None: dim. IDFF's two heads need 2 * dim.
        two_times: Whether there is an embedding of a second time, added to the first layer's output.
    """

    def __init__(
        self,
        dim: Count,
        width: Count = 64,
        depth: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 3,
        activation: type[nn.Module] = nn.SELU,
        num_classes: Whole = 0,
        out_dim: Count | None = None,
        two_times: bool = False,
    ) -> None:
        super().__init__()
        if min(dim, width, depth) < 1 or num_classes < 0:
            raise ValueError(f"dim, width and depth must be at least 1: got {dim}, {width}, {depth}, {num_classes=}")
        self.num_classes = num_classes
        self.description = {  # primitives, from which common.networks.build_network makes the network again
            "name": "MLP",
            "dim": dim,
            "width": width,
            "depth": depth,
            "activation": activation.__name__,
            "num_classes": num_classes,
            "out_dim": out_dim or dim,
            **({"two_times": True} if two_times else {}),
        }
        sizes = [dim + 1 + num_classes, *[width] * depth]
        layers: list[nn.Module] = []
        for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [nn.Linear(n_in, n_out), activation()]
        self.net = nn.Sequential(*layers, nn.Linear(width, out_dim or dim))
        self.end_embed = end_embedding(1, width) if two_times else None

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, r: Tensor | None = None) -> Tensor:
        """x (B, dim), t (B,) or a scalar, y (B,) integer labels or None, r as t or None -> (B, out_dim)."""
        inputs = [x, _column(t, x)]
        if self.num_classes:
            inputs.append(self._one_hot(x, y))
        if self.end_embed is None:
            if r is not None:
                raise ValueError(ONE_TIME)
            return self.net(torch.cat(inputs, dim=1))
        first = self.net[0](torch.cat(inputs, dim=1)) + self.end_embed(_column(t if r is None else r, x))
        return self.net[1:](first)

    def _one_hot(self, x: Tensor, y: Tensor | None) -> Tensor:
        """(B, num_classes); a row of zeros where there is no label."""
        if y is None:
            return x.new_zeros(x.shape[0], self.num_classes)
        return (y[:, None] == torch.arange(self.num_classes, device=y.device)).to(x.dtype)


def _column(t: Tensor, x: Tensor) -> Tensor:
    """Times, (B,) or one number, as a column (B, 1) beside x."""
    return t.to(x.dtype).expand(x.shape[0])[:, None]


def with_second_time(net: nn.Module, description: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """A network of two times with the weights of one of one time, equal at first, and its description.

    Raises:
        ValueError: the description is not that of the network.
    """
    description = {**description, "two_times": True}
    wide = build_network(description)
    missing, unexpected = wide.load_state_dict(net.state_dict(), strict=False)
    if unexpected or any(not key.startswith("end_embed.") for key in missing):
        raise ValueError(f"the weights do not fit their network {description}: {[*missing, *unexpected][:3]}")
    return wide.train(net.training), description


def network_description(config: Any, heads: int = 1, two_times: bool = False) -> dict[str, Any]:
    """The constructor arguments of a run's network, as primitives that a checkpoint can hold.

    Args:
        config: an object with the network fields of ``common.cli.configs.TrainConfig``.
        heads: outputs per image channel: 1 for a velocity, 2 for IDFF (which also takes its input twice).

    Raises:
        ValueError: an option that the network does not have, or no second time where there are two.
    """
    description = _of_options(config, heads, two_times)
    if two_times and not description.get("two_times"):
        raise ValueError(_no_second_time(f"--network {config.network}"))
    return description


def _of_options(config: Any, heads: int, two_times: bool) -> dict[str, Any]:
    """The description, as the network's own case makes it."""
    with_null = config.num_classes > 0 and config.label_dropout > 0
    shared = {
        "in_channels": config.in_channels * heads,
        "out_channels": config.in_channels * heads,
        "channels": config.num_channel,
        "channel_mult": list(config.channel_mult),
        "num_res_blocks": config.num_res_blocks,
        "num_heads": config.num_heads,
        "dropout": config.dropout,
        "num_classes": config.num_classes + with_null,
        "null_class": with_null,
        "checkpointing": config.checkpointing,
        **({"two_times": True} if two_times else {}),  # absent in the files of networks of one time
    }
    if config.network == "conditional_unet":
        if config.patch_size != 1:
            raise ValueError("--patch_size belongs to --network unet; conditional_unet takes 1")
        return {"name": "ConditionalUNet", **shared}
    return {
        "name": "UNet",
        "image_size": config.image_size,
        **shared,
        "attention_resolutions": list(config.attention_resolutions),
        "head_channels": config.head_channels,
        "patch_size": config.patch_size,
    }


def build_network(description: dict[str, Any]) -> nn.Module:
    """Build the network that ``network_description`` (or a checkpoint) describes.

    Raises:
        ValueError: an unknown network, or an argument of it that is missing, unknown, of another type or out of range.
    """
    arguments = dict(description)
    network = check_description(arguments)
    del arguments["name"]
    if "activation" in arguments:
        arguments["activation"] = getattr(nn, arguments["activation"])
    return network(**arguments)


def check_description(description: dict[str, Any]) -> type[nn.Module]:
    """The class of a network that can be built of a description; errors as in :func:`build_network`."""
    known = {network.__name__: network for network in (UNet, ConditionalUNet, GeneratorUNet, MLP)}
    name = description.get("name")
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"unknown network {name!r}; known: {', '.join(known)}")
    arguments = {key: value for key, value in description.items() if key != "name"}
    if arguments.get("two_times") and "r" not in inspect.signature(known[name].forward).parameters:
        raise ValueError(_no_second_time(name))
    checked(arguments, _arguments_of(known[name], frozenset(arguments)), f"its {name}")
    return known[name]


def _no_second_time(name: str) -> str:
    return f"{name} has no second time r, which --method flowmap and meanflow need: choose --network unet or another"


@functools.cache
def _arguments_of(network: type[nn.Module], given: frozenset[str]) -> Any:
    """A constructor's arguments as a type: lest a default be guessed, all but those that came later."""
    hints = get_type_hints(network.__init__, include_extras=True)
    hints |= {"activation": Activation} if "activation" in hints else {}
    later = {"two_times", "attention_levels"}
    if not given & {"null_class", "checkpointing"}:  # those of sst have neither
        later |= {"null_class", "checkpointing"}
    fields = [
        (key, hint, msgspec.UNSET) if key in later else (key, hint) for key, hint in hints.items() if key != "return"
    ]
    return msgspec.defstruct(network.__name__, fields, kw_only=True, forbid_unknown_fields=True)
