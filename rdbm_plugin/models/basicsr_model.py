"""The base class of RDBMModel: BasicSR's SRModel, or a replacement for forks that have only a BaseModel."""
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from rdbm_plugin.basicsr_host.lookup import has_registries, registered
from rdbm_plugin.config.options import build

if has_registries():
    from basicsr.models.sr_model import SRModel as BasicSRModel
else:
    from basicsr.models.base_model import BaseModel
    from basicsr.utils.logger import get_root_logger

    class BasicSRModel(BaseModel):  # type: ignore[no-redef]
        """The parts of SRModel that RDBMModel uses, on a fork's BaseModel; options, keys and files are the same."""

        def __init__(self, opt: dict[str, Any]) -> None:
            super().__init__(opt)
            self.net_g = self.model_to_device(self._network())
            self.print_network(self.net_g)
            # Forks create a folder for each key under path: that they do not know, so param_key_g cannot be set there.
            self._start_from_file(self.net_g, 'params' if opt['is_train'] else 'params_ema')
            if self.is_train:
                self.init_training_settings()

        def _network(self) -> nn.Module:
            return build('network_g', self.opt['network_g'], registered('ARCH'))

        def _start_from_file(self, net: nn.Module, key: str) -> bool:
            path = self.opt['path']
            if path.get('pretrain_network_g') is None:
                return False
            self.load_network(net, path['pretrain_network_g'], path.get('strict_load_g', True), key)
            return True

        def _loss(self, key: str) -> nn.Module | None:
            block = self.opt['train'].get(key)
            return build(f'train: {key}', block, registered('LOSS')).to(self.device) if block else None

        def init_training_settings(self) -> None:
            self.net_g.train()
            self.ema_decay = self.opt['train'].get('ema_decay', 0)
            if self.ema_decay > 0:
                self.net_g_ema = self._network().to(self.device)
                if not self._start_from_file(self.net_g_ema, 'params_ema'):
                    self.model_ema(0)
                self.net_g_ema.eval()
            self.cri_pix, self.cri_perceptual = self._loss('pixel_opt'), self._loss('perceptual_opt')
            settings = dict(self.opt['train']['optim_g'])
            trained = [parameter for parameter in self.net_g.parameters() if parameter.requires_grad]
            self.optimizer_g = self.get_optimizer(settings.pop('type'), trained, **settings)
            self.optimizers.append(self.optimizer_g)
            self.setup_schedulers()

        def get_current_visuals(self) -> OrderedDict[str, Tensor]:
            images = {'lq': self.lq, 'result': self.output, 'gt': getattr(self, 'gt', None)}
            return OrderedDict((key, image.detach().cpu()) for key, image in images.items() if image is not None)

        def save(self, epoch: int, current_iter: int) -> None:
            self.save_networks(current_iter)
            self.save_training_state(epoch, current_iter)

        def _initialize_best_metric_results(self, name: str) -> None:
            self.best_metric_results = getattr(self, 'best_metric_results', {})
            worst = {'lower': float('inf'), 'higher': float('-inf')}
            better = {metric: block.get('better', 'higher') for metric, block in self.opt['val']['metrics'].items()}
            self.best_metric_results.setdefault(name, {
                metric: {'better': each, 'val': worst[each], 'iter': -1} for metric, each in better.items()})

        def _update_best_metric_result(self, name: str, metric: str, val: float, current_iter: int | str) -> None:
            best = self.best_metric_results[name][metric]
            if val <= best['val'] if best['better'] == 'lower' else val >= best['val']:
                best.update(val=val, iter=current_iter)

        def _log_validation_metric_values(self, current_iter: int | str, name: str, tb_logger: Any) -> None:
            lines = [f'Validation {name}']
            for metric, value in self.metric_results.items():
                best = self.best_metric_results[name][metric]
                lines.append(f'\t # {metric}: {value:.4f}\tBest: {best["val"]:.4f} @ {best["iter"]} iter')
                if tb_logger:
                    tb_logger.add_scalar(f'metrics/{name}/{metric}', value, current_iter)
            get_root_logger().info('\n'.join(lines))
