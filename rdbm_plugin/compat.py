"""Every quirk of BasicSR and torchvision that we work around, one function each, with the reason.

None of them changes what BasicSR does for other models. All act in the process of our own command only, except
:func:`provide_functional_tensor`, which adds a module that would otherwise be missing.
"""
from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

_REMOVED = 'torchvision.transforms.functional_tensor'


class _FunctionalTensor(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return spec_from_loader(name, self) if name == _REMOVED else None

    def exec_module(self, module: ModuleType) -> None:
        from torchvision.transforms import functional
        module.rgb_to_grayscale = functional.rgb_to_grayscale


def provide_functional_tensor() -> None:
    """Let BasicSR 1.4.2 import under torchvision >= 0.17.

    BasicSR 1.4.2 imports ``rgb_to_grayscale`` from a module that torchvision has removed. The finder stands last,
    so that a torchvision that still has the module wins, and does nothing until somebody asks for that name.
    """
    if not any(isinstance(finder, _FunctionalTensor) for finder in sys.meta_path):
        sys.meta_path.append(_FunctionalTensor())


def resume_anywhere(basicsr_train: ModuleType) -> None:
    """Let ``--auto_resume`` and ``path: resume_state`` work without a GPU and in any experiments folder.

    BasicSR asks for ``torch.cuda.current_device()``, which fails on a CPU, and looks for states under the working
    directory only.
    """
    from pathlib import Path

    import torch
    from basicsr.utils.misc import check_resume

    def load_resume_state(opt: dict) -> dict | None:
        path = opt['path'].get('resume_state')
        if opt['auto_resume']:
            found = Path(opt['path']['training_states']).glob('*.state')
            path = max(found, key=lambda state: int(state.stem), default=None)
        if path is None:
            return None
        opt['path']['resume_state'] = str(path)
        state = torch.load(path, map_location='cpu', weights_only=True)
        check_resume(opt, state['iter'])
        return state

    basicsr_train.load_resume_state = load_resume_state


def check_before_writing(pipeline: ModuleType) -> None:
    """Check the options of basicsr.train or basicsr.test right after they are read.

    BasicSR makes folders and renames those of an older run before it builds anything.
    """
    from basicsr.utils.options import parse_options as read

    from rdbm_plugin.options import OptionError
    from rdbm_plugin.preflight import check_file, check_options

    def parse_options(root_path: str, is_train: bool = True) -> tuple:
        check_file(sys.argv[1:])
        with _named_changes():
            opt, args = read(root_path, is_train=is_train)
        check_options(opt)
        if not is_train and not opt['path'].get('pretrain_network_g'):
            raise OptionError('path: pretrain_network_g: missing; without weights there is nothing to test.')
        return opt, args

    pipeline.parse_options = parse_options


@contextmanager
def _named_changes() -> Iterator[None]:
    """Say in one line what is wrong with ``--force_yml``, which BasicSR runs as a program."""
    from rdbm_plugin.options import OptionError
    try:
        yield
    except (KeyError, NameError, SyntaxError, TypeError, ValueError) as error:
        if '--force_yml' not in sys.argv or isinstance(error, OptionError):
            raise
        raise OptionError(f'--force_yml: {type(error).__name__}: {error}; expected KEY:KEY=VALUE, where all keys but '
                          'the last stand in the option file, and lists as [...] with quoted text.') from None


def end_distributed() -> None:
    """Let ranks part in order; a rank that leaves while others still work makes some of them abort."""
    import torch
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def read_options(arguments: list[str], is_train: bool = False) -> dict:
    """Options as BasicSR's scripts read them from ``-opt FILE --force_yml ...``.

    BasicSR takes them from the command line of the process alone, tells that nothing is distributed, and fails without
    a word on what is wrong with the file.
    """
    from contextlib import redirect_stdout
    from io import StringIO
    from pathlib import Path

    from basicsr.utils import options

    from rdbm_plugin.preflight import check_file
    check_file(arguments)
    saved, sys.argv = sys.argv, ['rdbm', *arguments]
    try:
        with redirect_stdout(StringIO()), _named_changes():
            return options.parse_options(str(Path.cwd()), is_train=is_train)[0]
    finally:
        sys.argv = saved


def distribute_on_cpus() -> None:
    """Let ``--launcher pytorch`` work without GPUs.

    BasicSR divides by the number of GPUs and always takes NCCL. Nor can it be called twice in one process.
    """
    import torch
    from basicsr.utils import options

    start = options.init_dist

    def init_dist(launcher: str, backend: str = 'nccl', **kwargs: object) -> None:
        if torch.distributed.is_initialized():
            return
        if launcher == 'pytorch' and not torch.cuda.is_available():
            torch.distributed.init_process_group('gloo')
        else:
            start(launcher, backend, **kwargs)

    options.init_dist = init_dist


def new_log() -> None:
    """Let the next run in this process write a log file of its own, where BasicSR keeps to its first."""
    import logging

    from basicsr.utils import logger
    logging.getLogger('basicsr').handlers.clear()
    logger.initialized_logger.clear()
