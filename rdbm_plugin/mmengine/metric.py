"""BasicSR's metrics as mmengine metrics. Needs both."""
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.evaluator import BaseMetric

from rdbm_plugin.basicsr_host.lookup import of_basicsr
from rdbm_plugin.config.options import OptionError, check_choice
from rdbm_plugin.evaluation.scoring import scores
from rdbm_plugin.evaluation.set_measures import Share, combined
from rdbm_plugin.registry import METRICS


@METRICS.register_module()
class ProtocolMetric(BaseMetric):
    """A metric of BasicSR's METRIC_REGISTRY, for restored and degraded images.

    Configs use the metric's name: ``val_evaluator=[dict(type='rdbm_plugin.psnr_rgb', crop_border=4)]``. Results are
    ``psnr_rgb``, the mean over restored images, and ``psnr_rgb_degraded``, the mean over degraded images; with several
    tasks also both for each task, such as ``derain/psnr_rgb``.

    Args:
        protocol: Name of the metric.
        options: Other arguments of the metric.
        prefix, collect_device: As in mmengine.

    Raises:
        OptionError: BasicSR is not installed, the metric is unknown, or it needs ground truth that a set lacks.
    """

    def __init__(self, protocol: str, options: Mapping[str, Any] | None = None, prefix: str | None = None,
                 collect_device: str = 'cpu') -> None:
        super().__init__(collect_device, prefix)
        known = of_basicsr('METRIC')
        if not known:
            raise OptionError(f'evaluator: {protocol}: metrics need BasicSR, which is not installed.')
        self.protocol = check_choice('evaluator: protocol', protocol, known)
        self.options = {'type': protocol, **(options or {})}

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Score the results of BridgeRestorer for a batch."""
        from basicsr.utils.img_util import tensor2img
        for sample in data_samples:
            image = {key: tensor2img(sample[key]) for key in ('lq', 'restored', 'gt') if key in sample}
            each = [scores(image[key], image.get('gt'), {self.protocol: self.options}, 'evaluator')[self.protocol]
                    for key in ('restored', 'lq')]
            self.results.append((sample.get('task', ''), *each))

    def compute_metrics(self, results: list[tuple[str, float | Share, float | Share]]) -> dict[str, float]:
        """Return means over all images and over each task, or measures of these as sets (FID, KID)."""
        groups = {'': results}
        tasks = dict.fromkeys(task for task, *_ in results)
        for task in tasks if len(tasks) > 1 else ():
            groups[f'{task}/'] = [row for row in results if row[0] == task]
        return {f'{group}{self.protocol}{suffix}': combined([row[column] for row in rows])
                for group, rows in groups.items() for column, suffix in ((1, ''), (2, '_degraded'))}
