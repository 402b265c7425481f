"""The loss of the bridge. Needs torch only."""
from torch import Tensor, nn

from rdbm_plugin.bridge import PREDICTIONS, ResidualBridge
from rdbm_plugin.config.options import check_choice, check_number


class ResidualModulatedLoss(nn.Module):
    """Distance between the network's output and its target, measured in a selectable quantity.

    The paper trains with the L1 distance on the modulated noise pi * eps (arXiv 2510.23116): ``measure='noise'``. All
    predictions are linear in one another, so the error of any network can be measured in any quantity; only its weight
    over time differs. With R = Theta_t^2 / Sigma_t^2:

    ==========  ===========================  ==================================================================
    measure     weight on |residual error|   consequence (cosine, T = 100, lambda = 10/255)
    ==========  ===========================  ==================================================================
    residual    1                            every node counts the same (equal to ``x0``)
    noise       sqrt(R)                      59 % of the weight on the 10 nodes next to x0, 0.05 % on the last 10
    velocity    sqrt(1 + R)                  as noise next to x0, as residual next to mu
    ==========  ===========================  ==================================================================

    Args:
        loss_weight: Factor on the loss.
        criterion: ``l1`` or ``l2`` (mean absolute or mean squared error; the weight enters before the square).
        measure: ``residual``, ``x0``, ``noise`` or ``velocity``.
        balance: From 0 to 1. The weights of samples are proportional to (mean |residual| + 0.01)^-balance, with mean 1
            over the batch: 0 as in the paper, 1 to weight slight damage (blur) like heavy damage (darkness).

    Raises:
        OptionError: An argument is out of its range.
    """

    def __init__(self, loss_weight: float = 1.0, criterion: str = 'l1', measure: str = 'residual',
                 balance: float = 0.0) -> None:
        super().__init__()
        self.loss_weight = check_number('loss_weight', loss_weight, 0)
        self.criterion = check_choice('criterion', criterion, ('l1', 'l2'))
        self.measure = check_choice('measure', measure, PREDICTIONS)
        self.balance = check_number('balance', balance, 0, 1)

    def weights(self, residual: Tensor) -> Tensor:
        """Weights of samples, (N,), not yet divided by their mean, from residuals (N, C, H, W)."""
        return (residual.abs().mean(dim=(1, 2, 3)) + 0.01) ** -self.balance

    def forward(self, output: Tensor, target: Tensor, t: Tensor, bridge: ResidualBridge, residual: Tensor) -> Tensor:
        """Mean loss over a batch; arguments as for :meth:`of_samples`."""
        return self.of_samples(output, target, t, bridge, residual).mean()

    def of_samples(self, output: Tensor, target: Tensor, t: Tensor, bridge: ResidualBridge,
                   residual: Tensor, mean_weight: Tensor | None = None) -> Tensor:
        """Loss of each sample, (N,).

        Args:
            output: Network output, (N, C, H, W).
            target: ``bridge.target(...)``, (N, C, H, W).
            t: Nodes, (N,) int64, from 1 to T.
            bridge: Defines what the network predicts.
            residual: x0 - mu, (N, C, H, W) in [-2, 2].
            mean_weight: Mean of :meth:`weights` over all samples of a step; default: over these samples.
        """
        weight = bridge.error_gain(self.measure, t) / bridge.error_gain(bridge.prediction, t)
        error = weight.to(output).view(-1, 1, 1, 1) * (output - target)
        losses = (error.abs() if self.criterion == 'l1' else error.square()).mean(dim=(1, 2, 3))
        if self.balance > 0:
            weights = self.weights(residual)
            losses = losses * weights / (weights.mean() if mean_weight is None else mean_weight)
        return self.loss_weight * losses
