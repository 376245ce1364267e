"""The processors that this site trains on: those that site.toml names, and never another in their place."""

from collections.abc import Sequence

import torch

from common.errors import ConfigError


def devices_named(names: Sequence[str]) -> tuple[torch.device, ...]:
    """Each is `cpu`, `cuda` (the first GPU) or `cuda:N`. Raises ConfigError when this machine lacks one of them."""
    return tuple(_device_named(name) for name in names)


def _device_named(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device = {name!r} is none", "allowed: cpu, cuda, cuda:N") from None
    if device.type == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= found:
            raise ConfigError(
                f"device = {name!r} is not on this machine",
                f"torch {torch.__version__} finds {found or 'no'} GPUs: install the driver and a torch built for it, "
                'or set device = "cpu"; veilfed site check tells whether it worked',
            )
    return device


def described(devices: Sequence[torch.device]) -> str:
    """For the administrator: the name of each, and what it is."""
    return "; ".join(map(_described, devices))


def _described(device: torch.device) -> str:
    if device.type == "cpu":
        return f"cpu, {torch.get_num_threads()} threads"
    about = torch.cuda.get_device_properties(device)
    return f"{device}, {about.name}, {about.total_memory / 2**30:.0f} GiB"
