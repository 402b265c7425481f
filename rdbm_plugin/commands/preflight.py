"""Check a whole option file, for any model, before anything is built or written. Needs BasicSR."""
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rdbm_plugin.basicsr_host.lookup import registered
from rdbm_plugin.config.options import OptionError, check_block, check_choice, check_keys
from rdbm_plugin.data.inspection import check_headers
from rdbm_plugin.models.option_checks import OF_ANY_MODEL, OF_OURS


def check_foreign_model(opt: Mapping[str, Any]) -> None:
    """Check that the network of another BasicSR model exists and accepts its keys."""
    network, known = check_block(opt, 'network_g'), registered('ARCH')
    cls = known[check_choice('network_g: type', network.pop('type', None), known)]
    check_keys('network_g', network, cls)


def check_dataset(phase: str, dataset: Mapping[str, Any], ranks: int = 1, headers: bool = True) -> None:
    """Check one block of ``datasets:``: build it if it is ours, or check that its folders exist if it is BasicSR's.

    With ``headers``, the image headers of our own training sets are checked as well.
    """
    where = f'datasets: {phase}'
    cls = registered('DATASET')[check_choice(f'{where}: type', dataset.get('type'), registered('DATASET'))]
    if cls.__module__.startswith('rdbm_plugin.'):
        if dataset.get('persistent_workers') and dataset.get('phase') == 'train':
            raise OptionError(f'{where}: persistent_workers: true would break the image order; to start workers '
                              'less often, lengthen the epochs with dataset_enlarge_ratio.')
        built = cls(dataset)
        if dataset.get('phase') != 'train':
            return
        batch, ratio = dataset.get('batch_size_per_gpu'), dataset.get('dataset_enlarge_ratio', 1)
        if batch and math.ceil(len(built) * ratio / ranks) < batch:
            # BasicSR would finish without a single iteration.
            raise OptionError(f'datasets: train: dataset_enlarge_ratio: found {ratio:g}; {len(built)} images times '
                              f'this, split among {ranks} processes, do not fill one batch of {batch}.')
        if headers:
            check_headers(built, where)
        return
    for key, value in dataset.items():
        if value is not None and key.startswith(('dataroot', 'meta_info_file')):
            for root in value if isinstance(value, list) else [value]:
                if not Path(root).expanduser().exists():
                    raise OptionError(f'{where}: {key}: no such file or folder {root!r} '
                                      f'(looked in {Path(root).absolute()}).')


def faults(opt: Mapping[str, Any], headers: bool = True) -> Iterator[OptionError]:
    """Yield the faults of an option file, check by check."""
    try:
        kind = check_choice('model_type', opt.get('model_type'), registered('MODEL'))
        ours = registered('MODEL')[kind].__module__.startswith('rdbm_plugin.')
        checks = [partial(check, opt) for check in (OF_OURS if ours else (*OF_ANY_MODEL, check_foreign_model))]
        checks += [partial(check_dataset, phase, dataset, opt.get('world_size', 1), headers)
                   for phase, dataset in check_block(opt, 'datasets').items()]
    except OptionError as error:
        yield error
        return
    for check in checks:
        try:
            check()
        except OptionError as error:
            yield error


def check_options(opt: Mapping[str, Any]) -> None:
    """Raise the first fault that :func:`faults` yields."""
    for fault in faults(opt):
        raise fault
