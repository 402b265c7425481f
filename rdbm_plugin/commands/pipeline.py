"""What ``rdbm train`` and ``rdbm test`` add to BasicSR's scripts: checks before anything is written, exact resuming.

BasicSR's functions are replaced only in the process of our command, and behave as before for other models.
"""
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from math import ceil
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger, options, set_random_seed
from basicsr.utils.misc import check_resume

import rdbm_plugin.registration  # noqa: F401
from rdbm_plugin.basicsr_host.lookup import registered
from rdbm_plugin.commands.preflight import check_options
from rdbm_plugin.config.option_file import read_option_file
from rdbm_plugin.config.option_keys import check_values
from rdbm_plugin.config.options import OptionError
from rdbm_plugin.data.repeatable import ResumableSampler, SeededDataset
from rdbm_plugin.data.task_mixture import MixedDataset
from rdbm_plugin.evaluation.scoring import check_sizes
from rdbm_plugin.models.checkpoints import Checkpoints, read_state
from rdbm_plugin.models.optimizers import make_optimizer
from rdbm_plugin.models.rdbm_model import RDBMModel
from rdbm_plugin.models.resuming import Loop


def parse_options(root_path: str, is_train: bool = True,
                  arguments: Sequence[str] | None = None) -> tuple[dict[str, Any], Namespace]:
    """Run BasicSR's parse_options on an option file and ``--force_yml`` read by :mod:`rdbm_plugin.config.option_file`.

    BasicSR would execute both as code, and set seeds before it applies the changes. ``arguments`` defaults to the
    command line. torch.distributed.launch passes ``--local-rank``, but BasicSR accepts ``--local_rank``.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('-opt')
    parser.add_argument('--force_yml', nargs='+', action='extend', default=[])
    given, rest = parser.parse_known_args(arguments)
    if given.opt is None:
        return options.parse_options(root_path, is_train=is_train)
    content = read_option_file(given.opt, given.force_yml)
    check_values({**content, 'is_train': is_train})
    # BasicSR would expect each to be the path of a single folder.
    lists = [(dataset, key, dataset.pop(key)) for dataset in content['datasets'].values()
             for key in ('dataroot_gt', 'dataroot_lq') if isinstance(dataset.get(key), list)]
    open_seed = content.get('manual_seed') is None
    saved, yaml = sys.argv, options.yaml
    sys.argv = [saved[0], '-opt', given.opt, *(each.replace('--local-rank', '--local_rank') for each in rest)]
    # BasicSR receives the content that has already been read.
    options.yaml = SimpleNamespace(**{**vars(yaml), 'load': lambda *_, **__: content})
    try:
        opt, args = options.parse_options(root_path, is_train=is_train)
    finally:
        sys.argv, options.yaml = saved, yaml
    for dataset, key, roots in lists:
        dataset[key] = [str(Path(root).expanduser()) for root in roots]
    if open_seed and opt['dist']:
        # BasicSR draws a different seed on each rank.
        seeds = [opt['manual_seed']]
        torch.distributed.broadcast_object_list(seeds)
        opt['manual_seed'] = seeds[0]
        options.set_random_seed(seeds[0] + opt['rank'])
    return opt, args


def check_before_writing(script: ModuleType) -> None:
    """Check the options of basicsr.train or basicsr.test right after they are read.

    BasicSR creates folders, and renames those of an older run, before it builds anything. A test with a training
    option file tests what that file trained.
    """
    trained: list[str] = []

    def parse(root_path: str, is_train: bool = True) -> tuple[dict[str, Any], Namespace]:
        opt, args = parse_options(root_path, is_train)
        # Later calls in this process may use other names, for their results.
        trained.append(opt['name'])
        if not is_train:
            name_weights(opt, args.opt, trained[0])
        check_options(opt)
        check_sizes(opt)
        if not is_train and 'save_img' not in (opt.get('val') or {}):
            raise OptionError('val: save_img: missing; expected true or false.')
        return opt, args

    script.parse_options = parse


def name_weights(opt: dict[str, Any], file: str, name: str) -> None:
    """Check that test options name weights; turn training options into those of a test of ``experiments/NAME``."""
    if 'train' not in opt:
        if not opt['path'].get('pretrain_network_g'):
            raise OptionError(f'{file}: path: pretrain_network_g: missing; without weights there is nothing to test.')
        return
    weights = Path('experiments', name, 'models', 'net_g_latest.pth')
    if not weights.is_file():
        raise OptionError(f'{file}: not trained yet: no {weights}; run: rdbm train -opt {file}')
    averaged = (opt.pop('train').get('ema_decay') or 0) > 0
    opt['path'].update(pretrain_network_g=str(weights), param_key_g='params_ema' if averaged else 'params',
                       strict_load_g=True)
    opt['datasets'].pop('train', None)


def know_more_optimizers() -> None:
    """Let other models use the optimizers of RDBMModel; BasicSR 1.4.2 supports only Adam."""
    theirs = BaseModel.get_optimizer

    def get_optimizer(self: BaseModel, optim_type: str, params: list[torch.Tensor], lr: float,
                      **kwargs: Any) -> torch.optim.Optimizer:
        try:
            return theirs(self, optim_type, params, lr, **kwargs)
        except NotImplementedError:
            return make_optimizer(optim_type, params, lr, **kwargs)

    BaseModel.get_optimizer = get_optimizer


def resume_exactly(script: ModuleType) -> None:
    """Let ``--auto_resume`` and ``path: resume_state`` of basicsr.train resume within an epoch, from intact files only.

    BasicSR restarts the epoch, accepts a damaged state, requires a GPU, and looks for states only under the working
    directory. Models other than RDBMModel keep BasicSR's data order.
    """
    made: dict[str, Any] = {'epoch': 0, 'iter': 0}
    loop: dict[str, Any] = {}

    def find_state(opt: dict[str, Any]) -> dict[str, Any] | None:
        state = load_resume_state(opt)
        made.update({key: state[key] for key in made} if state else {})
        return state

    def make_loggers(opt: dict[str, Any]) -> Any:
        board = start_loggers(opt)
        loop['tb_logger'] = board and SurvivingBoard(board)
        return loop['tb_logger']

    def make_set(dataset_opt: dict[str, Any]) -> Any:
        dataset = build_set(dataset_opt)
        mixed = isinstance(dataset, MixedDataset)
        return dataset if mixed or dataset_opt['phase'] != 'train' else SeededDataset(dataset)

    def make_loaders(opt: dict[str, Any], logger: Any) -> tuple:
        if issubclass(registered('MODEL')[opt['model_type']], RDBMModel):
            script.EnlargedSampler = partial(ResumableSampler, seed=opt['manual_seed'])
            script.build_dataset = make_set
        loader, sampler, val_loaders, _, iterations = build_loaders(opt, logger)
        loop.update(train_loader=loader, train_sampler=sampler, val_loaders=val_loaders)
        if not len(loader):
            raise OptionError(f'datasets: train: dataset_enlarge_ratio: {len(sampler)} samples per epoch do not '
                              f'fill one batch of {loader.batch_size}.')
        # BasicSR counts the incomplete last batch of an epoch, which its loader drops, and would finish too early.
        # Moreover, the epochs before resuming may have had another length.
        epochs = made['epoch'] + ceil((iterations - made['iter']) / len(loader))
        return loader, sampler, val_loaders, epochs, iterations

    def make_model(opt: dict[str, Any]) -> Any:
        model = build_model(opt)
        if isinstance(model, RDBMModel):
            model.attach(Loop(**loop))
        return model

    start_loggers, build_set = script.init_tb_loggers, script.build_dataset
    build_loaders, build_model = script.create_train_val_dataloader, script.build_model
    script.init_tb_loggers, script.create_train_val_dataloader = make_loggers, make_loaders
    script.build_model, script.load_resume_state = make_model, find_state


class SurvivingBoard:
    """A TensorBoard writer that, unlike torch's, does not end the training when its disk is full."""

    def __init__(self, board: Any) -> None:
        self.board = board

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> None:
            try:
                if self.board:
                    getattr(self.board, name)(*args, **kwargs)
            except OSError as error:
                self.board = None
                get_root_logger().warning(f'TensorBoard can no longer write: {error}. Training continues without it.')
        return call


def load_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
    """Return the state to resume from, or None for a new run; replaces BasicSR's function of the same name.

    ``--auto_resume`` takes the newest state that is intact, as are its networks, and prints which ones it skips.
    Raises OptionError if the requested state, or every state of the run, is damaged.
    """
    path, state = opt['path'].get('resume_state'), None
    if opt['auto_resume']:
        checkpoints = Checkpoints(opt['path'])
        if opt['rank'] == 0:
            checkpoints.clear_partial()
        ignored = opt['path'].get('ignore_resume_networks') or ()
        networks = [key.replace('network_', 'net_') for key in opt if key.startswith('network_') and key not in ignored]
        faults = []
        for path, found in checkpoints.newest_first(networks):
            if not isinstance(found, OptionError):
                state = found
                break
            faults.append(str(found))
            if opt['rank'] == 0:
                print(f'Skipped {path}: {found}', flush=True)
        if faults and state is None:
            raise OptionError(f'--auto_resume: no state in {opt["path"]["training_states"]} is intact; last fault: '
                              f'{faults[-1]} Without --auto_resume a new run starts, and this one is archived.')
    elif path is not None:
        state = read_state(Path(path))
    if state is None:
        return None
    opt['path']['resume_state'] = str(path)
    if state.get('seed', opt['manual_seed']) != opt['manual_seed']:
        # Without a seed in the option file, BasicSR draws a new one at every start.
        if opt['rank'] == 0:
            print(f'manual_seed: resuming with {state["seed"]} of the run, not {opt["manual_seed"]}.', flush=True)
        opt['manual_seed'] = state['seed']
        set_random_seed(state['seed'] + opt['rank'])
    with redirect_stdout(StringIO()):
        check_resume(opt, state['iter'])
    return state


def read_options(file: str | Path, changes: Sequence[str] = (), is_train: bool = False) -> dict[str, Any]:
    """Return the options that BasicSR's scripts read from ``-opt FILE --force_yml CHANGES`` in a single process."""
    forced = ['--force_yml', *changes] if changes else []
    with redirect_stdout(StringIO()):
        return parse_options(str(Path.cwd()), is_train, ['-opt', str(file), *forced])[0]
