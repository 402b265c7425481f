"""What ``rdbm train`` and ``rdbm test`` add to BasicSR's scripts: checks before anything is written, exact resumption.

BasicSR's functions are replaced in the process of our command only, and do for other models what they always did.
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
    """BasicSR's parse_options with the option file and ``--force_yml`` read by :mod:`rdbm_plugin.config.option_file`.

    BasicSR runs both as programs, and seeds before the changes are made. ``arguments`` are by default those of the
    command line; ``--local-rank`` is what torch.distributed.launch passes, ``--local_rank`` what BasicSR takes.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('-opt')
    parser.add_argument('--force_yml', nargs='+', action='extend', default=[])
    given, rest = parser.parse_known_args(arguments)
    if given.opt is None:
        return options.parse_options(root_path, is_train=is_train)
    content = read_option_file(given.opt, given.force_yml)
    check_values({**content, 'is_train': is_train})
    # BasicSR takes each for the path of one folder.
    lists = [(dataset, key, dataset.pop(key)) for dataset in content['datasets'].values()
             for key in ('dataroot_gt', 'dataroot_lq') if isinstance(dataset.get(key), list)]
    open_seed = content.get('manual_seed') is None
    saved, yaml = sys.argv, options.yaml
    sys.argv = [saved[0], '-opt', given.opt, *(each.replace('--local-rank', '--local_rank') for each in rest)]
    # What BasicSR loads has been read already.
    options.yaml = SimpleNamespace(**{**vars(yaml), 'load': lambda *_, **__: content})
    try:
        opt, args = options.parse_options(root_path, is_train=is_train)
    finally:
        sys.argv, options.yaml = saved, yaml
    for dataset, key, roots in lists:
        dataset[key] = [str(Path(root).expanduser()) for root in roots]
    if open_seed and opt['dist']:
        # BasicSR draws another one on each rank.
        seeds = [opt['manual_seed']]
        torch.distributed.broadcast_object_list(seeds)
        opt['manual_seed'] = seeds[0]
        options.set_random_seed(seeds[0] + opt['rank'])
    return opt, args


def check_before_writing(script: ModuleType) -> None:
    """Check the options of basicsr.train or basicsr.test right after they are read.

    BasicSR makes folders and renames those of an older run before it builds anything. A test with the option file of a
    training is one of what it trained.
    """
    trained: list[str] = []

    def parse(root_path: str, is_train: bool = True) -> tuple[dict[str, Any], Namespace]:
        opt, args = parse_options(root_path, is_train)
        # Later ones in this process may have a name of their own for their results.
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
    """Let options be those of a test: of a training they become those of what ``experiments/NAME`` has of it."""
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
    """Let other models take the optimizers that RDBMModel takes; BasicSR 1.4.2 knows Adam alone."""
    theirs = BaseModel.get_optimizer

    def get_optimizer(self: BaseModel, optim_type: str, params: list[torch.Tensor], lr: float,
                      **kwargs: Any) -> torch.optim.Optimizer:
        try:
            return theirs(self, optim_type, params, lr, **kwargs)
        except NotImplementedError:
            return make_optimizer(optim_type, params, lr, **kwargs)

    BaseModel.get_optimizer = get_optimizer


def resume_exactly(script: ModuleType) -> None:
    """Let ``--auto_resume`` and ``path: resume_state`` of basicsr.train resume within an epoch, from whole files alone.

    BasicSR starts the epoch anew, takes a damaged state for good, asks for a GPU, and looks for states under the
    working directory only. Models that have no ``attach`` keep BasicSR's data order.
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
            raise OptionError(f'datasets: train: dataset_enlarge_ratio: {len(sampler)} samples an epoch do not fill '
                              f'one batch of {loader.batch_size}.')
        # BasicSR counts the incomplete batch at the end of an epoch, which its loader drops, and would end too early;
        # nor need the epochs so far have been as long as they are now.
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
    """A TensorBoard writer that does not end the training when its disk is full, as torch's does."""

    def __init__(self, board: Any) -> None:
        self.board = board

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> None:
            try:
                if self.board:
                    getattr(self.board, name)(*args, **kwargs)
            except OSError as error:
                self.board = None
                get_root_logger().warning(f'TensorBoard cannot write any more: {error}. Training continues without it.')
        return call


def load_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
    """The state to resume from, None for a new run; replaces BasicSR's function of this name.

    With ``--auto_resume`` it is the newest one that is whole, with its networks; those passed over are named. Raises
    OptionError if the state asked for, or every state of the run, is damaged.
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
                print(f'Passed over {path}: {found}', flush=True)
        if faults and state is None:
            raise OptionError(f'--auto_resume: no state in {opt["path"]["training_states"]} is whole; last fault: '
                              f'{faults[-1]} Without --auto_resume a new run starts, and this one is archived.')
    elif path is not None:
        state = read_state(Path(path))
    if state is None:
        return None
    opt['path']['resume_state'] = str(path)
    if state.get('seed', opt['manual_seed']) != opt['manual_seed']:
        # Left open in the option file, BasicSR draws another one in every start.
        if opt['rank'] == 0:
            print(f'manual_seed: {state["seed"]}, as the run began with it, not {opt["manual_seed"]}.', flush=True)
        opt['manual_seed'] = state['seed']
        set_random_seed(state['seed'] + opt['rank'])
    with redirect_stdout(StringIO()):
        check_resume(opt, state['iter'])
    return state


def read_options(file: str | Path, changes: Sequence[str] = (), is_train: bool = False) -> dict[str, Any]:
    """Options as BasicSR's scripts read them from ``-opt FILE --force_yml CHANGES`` in one process."""
    forced = ['--force_yml', *changes] if changes else []
    with redirect_stdout(StringIO()):
        return parse_options(str(Path.cwd()), is_train, ['-opt', str(file), *forced])[0]
