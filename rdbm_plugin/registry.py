"""mmengine registries, under the scope ``rdbm_plugin``, for what the plugin and BasicSR register. Needs mmengine.

mmengine imports this module itself when a config names the scope, as in ``type='rdbm_plugin.RDBMUNet'``; configs need
no ``custom_imports``. Bridges, samplers, our network and our loss work without BasicSR.
"""
import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from importlib import import_module
from typing import Any

from rdbm_plugin.basicsr_host.lookup import REGISTERED, of_basicsr
from rdbm_plugin.config.options import build
from rdbm_plugin.models.optimizers import timm_optimizers

try:
    from mmengine import registry as root
except ImportError:
    raise ImportError('rdbm_plugin.registry needs mmengine: pip install mmengine') from None


class Mirror(root.Registry):
    """A registry for mmengine that also finds what the plugin and BasicSR have registered so far.

    Args:
        name, parent: Name of the mmengine registry that this one extends, and that registry.
        kinds: BasicSR registries to search.
        adapt: Maps (name, class or function) to what mmengine can build; default: unchanged.
        more: Returns, by name, classes that are in none of BasicSR's registries.
    """

    def __init__(self, name: str, parent: root.Registry, kinds: tuple[str, ...] = (),
                 adapt: Callable[[str, Any], Any] = lambda _, found: found,
                 more: Callable[[], Mapping[str, Any]] = dict) -> None:
        super().__init__(name, parent=parent, scope='rdbm_plugin', locations=[
            f'rdbm_plugin.mmengine.{module}' for module in ('restorer', 'training', 'metric')])
        self.kinds, self.adapt, self.more = kinds, adapt, more
        self.ours = {entry.split(':')[1]: entry.split(':')[0] for kind in kinds for entry in REGISTERED[kind]}

    def get(self, key: str) -> Any:
        """Return the class for a name with or without scope, or None if there is none."""
        self.import_from_location()
        scope, name = self.split_scope_key(key)
        if scope in (None, self.scope) and name not in self.module_dict:
            found = getattr(import_module(self.ours[name]), name) if name in self.ours else self.others().get(name)
            if found is not None:
                self.register_module(name=name, module=self.adapt(name, found))
        return super().get(key)

    def others(self) -> dict[str, Any]:
        """Return what others have registered under these kinds so far, by name."""
        found = {name: each for kind in reversed(self.kinds) for name, each in of_basicsr(kind).items()}
        return {**self.more(), **found}

    def make(self, where: str, block: Mapping[str, Any] | None, default: str | None = None, **given: Any) -> Any:
        """Build a block of a config as :func:`rdbm_plugin.config.options.build` does; ``type`` is a name or a class."""
        kind = block.get('type', default) if isinstance(block, Mapping) else default
        found = kind if inspect.isclass(kind) else None
        if isinstance(kind, str):
            # mmengine raises this for a scope that it cannot import.
            with suppress(RuntimeError):
                found = self.get(kind)
        types = {str(kind): found} if found is not None else {**self.others(), **self.ours, **self.module_dict}
        if isinstance(block, Mapping):
            block = {**block, 'type': str(kind) if inspect.isclass(kind) else kind}
        return build(where, block, types, default, **given)


def _of_block(_: str, cls: type) -> Callable[..., Any]:
    """Return a function of the block's keys, because BasicSR's data sets take one block and read its name and phase."""
    def make(name: str = 'data', phase: str = 'train', **block: Any) -> Any:
        return cls(deepcopy({'name': name, 'phase': phase, **block}))
    return make


def _of_protocol(protocol: str, _: Any) -> Callable[..., Any]:
    """Return a function that builds ProtocolMetric, because BasicSR's metrics are functions of two images."""
    def make(prefix: str | None = None, collect_device: str = 'cpu', **options: Any) -> Any:
        return METRICS.get('ProtocolMetric')(protocol, options, prefix, collect_device)
    return make


MODELS = Mirror('model', root.MODELS, ('ARCH', 'LOSS'))
TASK_UTILS = Mirror('task util', root.TASK_UTILS, ('BRIDGE', 'SAMPLER'))
DATASETS = Mirror('dataset', root.DATASETS, ('DATASET',), _of_block)
METRICS = Mirror('metric', root.METRICS, ('METRIC',), _of_protocol)
HOOKS = Mirror('hook', root.HOOKS)
# timm's, as in type='rdbm_plugin.Muon'; mmengine's own registry has torch's.
OPTIMIZERS = Mirror('optimizer', root.OPTIMIZERS, more=timm_optimizers)
OPTIM_WRAPPERS = Mirror('optim_wrapper', root.OPTIM_WRAPPERS)
STRATEGIES = Mirror('strategy', root.STRATEGIES)
