"""Rates of the bridge: ``theta[i]`` belongs to nodes i to i+1; node 0 is x0, node T is mu. Needs torch only."""
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rdbm_plugin.config.options import OptionError, check_choice, check_int, check_number


def _cosine(steps: int) -> Tensor:
    """Increments of the squared-cosine schedule (Nichol & Dhariwal, arXiv 2102.09672, Eq. 17), capped at 0.999."""
    grid = torch.arange(steps + 1, dtype=torch.float64) / steps
    alpha_bar = torch.cos((grid + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


def _cosine_rate(steps: int) -> Tensor:
    """Rates that rise along a squared sine: one minus the cosine schedule itself, as in IR-SDE and GOUB."""
    grid = (torch.arange(steps, dtype=torch.float64) + 2) / (steps + 2)
    curve = torch.cos((torch.cat([grid.new_zeros(1), grid]) + 0.008) / 1.008 * math.pi / 2).square()
    return 1 - curve[1:] / curve[0]


SCHEDULES: dict[str, Callable[[int], Tensor]] = {
    'cosine': _cosine, 'cosine_rate': _cosine_rate,
    'linear': lambda steps: torch.linspace(1e-4, 0.02, steps, dtype=torch.float64),
    'sigmoid': lambda steps: torch.sigmoid(torch.linspace(-6, 6, steps, dtype=torch.float64)) * (0.02 - 1e-4) + 1e-4,
    'constant': lambda steps: torch.full((steps,), 1 / steps, dtype=torch.float64)}


def rates(schedule: str | Sequence[float], timesteps: int, total: float | None = None) -> Tensor:
    """The T rates theta of a schedule, float64; their sum is theta_bar_{0:T}.

    Args:
        schedule: A name in SCHEDULES, or the T rates themselves, > 0.
        timesteps: T, at least 1.
        total: Rescales the rates so that theta_bar_{0:T} has this value, > 0; default: no rescaling.
    """
    check_int('timesteps', timesteps, 1)
    if isinstance(schedule, (str, bytes)) or not isinstance(schedule, Sequence):
        theta = SCHEDULES[check_choice('schedule', schedule, SCHEDULES)](timesteps)
    elif len(schedule) != timesteps:
        raise OptionError(f'schedule: found {len(schedule)} rates; expected one for each of the {timesteps} timesteps.')
    else:
        theta = torch.tensor([check_number('schedule', rate, above=0) for rate in schedule], dtype=torch.float64)
    if total is not None:
        theta = theta * (check_number('total', total, above=0) / theta.sum())
    return theta
