"""RDBMModel for forks of BasicSR without registries. Needs such a fork; see :mod:`rdbm_plugin.basicsr_host.lookup`."""
from collections.abc import Mapping
from typing import Any

from rdbm_plugin.models import rdbm_model
from rdbm_plugin.models.checkpoints import surviving


class RDBMModel(rdbm_model.RDBMModel):
    """Accepts the additional arguments that the training loops of forks pass, and returns what they expect.

    Restormer and Retinexformer call ``feed_train_data``, and Retinexformer stores the best scores in the states. NAFNet
    passes ``is_val`` and the TensorBoard writer. All pass a colour order and a kind of image to the validation; both
    are ignored in favour of BasicSR's: RGB, scored as 8-bit images.
    """

    GO_ON = 'Run the same command again: most forks resume from the last state.'

    def __init__(self, opt: dict[str, Any]) -> None:
        metrics = (opt.get('val') or {}).get('metrics') or {}
        self.best_metric: dict[str, float] = {'iter': 0, **dict.fromkeys(metrics, 0)}
        super().__init__(opt)

    def feed_data(self, data: Mapping[str, Any], is_val: bool = False) -> None:
        super().feed_data(data)

    def feed_train_data(self, data: Mapping[str, Any]) -> None:
        """Take a training batch, ``lq`` and ``gt``, each (N, C, H, W) in [0, 1]."""
        self.feed_data(data)

    def optimize_parameters(self, current_iter: int, tb_logger: Any = None) -> None:
        super().optimize_parameters(current_iter)

    def validation(self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool = False,
                   rgb2bgr: bool = True, use_image: bool = True) -> float:
        """Restore and score a data set; return its PSNR, or else the first score under ``val: metrics:``."""
        validate = self.dist_validation if self.opt['dist'] else self.nondist_validation
        validate(dataloader, current_iter, tb_logger, save_img)
        scores = getattr(self, 'metric_results', {})
        return scores.get('psnr', next(iter(scores.values()), 0.0))

    def save_best(self, best_metric: Mapping[str, float]) -> None:
        """Save the networks as net_g_best.pth; ``best_metric`` holds their score and iteration."""
        self.best_metric = dict(best_metric)
        with surviving('The best network'):
            self.save_networks('best')

    def save(self, epoch: int, current_iter: int, best_metric: Mapping[str, float] | None = None) -> None:
        self.best_metric = dict(best_metric or self.best_metric)
        super().save(epoch, current_iter)

    def further_state(self) -> dict[str, Any]:
        return {**super().further_state(), 'best_metric': self.best_metric}

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        self.best_metric = resume_state.get('best_metric', self.best_metric)
        super().resume_training(resume_state)
