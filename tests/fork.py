"""A code base laid out as those from before BasicSR's registries: scans, define_network, a training loop of its own.

Where such forks did not change BasicSR, its installed files are taken; the rest is written after the convention that
NAFNet, Restormer and Retinexformer share, and ``loop`` says which of their two kinds of training loop it has.
"""
import ast
import shutil

from conftest import basicsr_folder

UTILS = '''
import os
from basicsr.utils.img_util import imwrite, tensor2img
from basicsr.utils.logger import MessageLogger, get_root_logger, init_tb_logger
from basicsr.utils.misc import get_time_str, make_exp_dirs, mkdir_and_rename, scandir, set_random_seed
'''
SCAN = '''
import importlib
from os import path as osp
from basicsr.utils import scandir

_{kind}_modules = [importlib.import_module('{package}.' + osp.splitext(name)[0])
                   for name in scandir(osp.dirname(osp.abspath(__file__))) if name.endswith('_{kind}.py')]


def find(name):
    found = [getattr(module, name) for module in _{kind}_modules if hasattr(module, name)]
    if not found:
        raise ValueError(name + ' is not found.')
    return found[0]
'''
MODELS = SCAN.format(kind='model', package='basicsr.models') + '''

def create_model(opt):
    return find(opt['model_type'])(opt)
'''
ARCHS = SCAN.format(kind='arch', package='basicsr.models.archs') + '''

def define_network(opt):
    return find(opt.pop('type'))(**opt)
'''
DATA = SCAN.format(kind='dataset', package='basicsr.data') + '''
from torch.utils.data import DataLoader


def create_dataset(opt):
    return find(opt['type'])(opt)


def create_dataloader(dataset, opt, num_gpu, sampler=None):
    if opt['phase'] != 'train':
        return DataLoader(dataset, batch_size=1)
    batch = opt['batch_size_per_gpu'] * (num_gpu or 1)
    workers = opt['num_worker_per_gpu']
    return DataLoader(dataset, batch, sampler=sampler, num_workers=workers, drop_last=True,
                      persistent_workers=workers > 0)
'''
METRICS = '''
import numpy as np


def calculate_psnr(img1, img2, crop_border, input_order='HWC', test_y_channel=False):
    return 10 * np.log10(255**2 / np.mean((img1.astype(float) - img2.astype(float))**2))
'''
PSNR_SSIM = '''
from basicsr.metrics import calculate_psnr


def calculate_ssim(img1, img2, crop_border, input_order='HWC', test_y_channel=False):
    # Theirs is a 3-D window, computed on a GPU.
    raise RuntimeError('Found no NVIDIA driver on your system.')
'''
MODEL = '''
from copy import deepcopy
from basicsr.models.archs import define_network
from basicsr.models.base_model import BaseModel


class ImageCleanModel(BaseModel):
    def __init__(self, opt):
        super().__init__(opt)
        self.net_g = self.model_to_device(define_network(deepcopy(opt['network_g'])))
'''
OPTIONS = '''
from os import path as osp
import yaml


def parse(opt_path, is_train=True):
    with open(opt_path) as file:
        opt = yaml.load(file, Loader=yaml.CLoader)
    opt['is_train'] = is_train
    for phase, dataset in opt['datasets'].items():
        dataset.update(phase=phase.split('_')[0], scale=opt['scale'])
    opt['path']['root'] = osp.abspath(osp.join(__file__, osp.pardir, osp.pardir, osp.pardir))
    kind = 'experiments' if is_train else 'results'
    root = opt['path'][kind + '_root'] = osp.join(opt['path']['root'], kind, opt['name'])
    opt['path'].update(log=root, visualization=osp.join(root, 'visualization'))
    if is_train:
        opt['path'].update(models=osp.join(root, 'models'), training_states=osp.join(root, 'training_states'))
    return opt
'''
TRAIN = '''
import argparse
import math
from os import path as osp
from basicsr.data import create_dataloader, create_dataset
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.data.prefetch_dataloader import CPUPrefetcher
from basicsr.models import create_model
from basicsr.utils import get_root_logger, get_time_str, make_exp_dirs, set_random_seed
from basicsr.utils.options import parse

PROGRESSIVE = {progressive}


def parse_options(is_train=True):
    parser = argparse.ArgumentParser()
    parser.add_argument({flag!r}, required=True)
    opt = parse(parser.parse_args().opt, is_train)
    opt.update(dist=False, rank=0, world_size=1)
    set_random_seed(opt['manual_seed'])
    return opt


def main():
    opt = parse_options()
    make_exp_dirs(opt)
    logger = get_root_logger(log_file=osp.join(opt['path']['log'], 'train_' + get_time_str() + '.log'))
    for phase, dataset_opt in opt['datasets'].items():
        if phase == 'train':
            train_set = create_dataset(dataset_opt)
            sampler = EnlargedSampler(train_set, 1, 0, dataset_opt.get('dataset_enlarge_ratio', 1))
            loader = create_dataloader(train_set, dataset_opt, opt['num_gpu'], sampler)
        elif phase == 'val':
            val_loader = create_dataloader(create_dataset(dataset_opt), dataset_opt, opt['num_gpu'])
        else:
            raise ValueError('Dataset phase ' + phase + ' is not recognized.')
    model = create_model(opt)
    prefetcher = CPUPrefetcher(loader)
    epoch, current_iter, best = 0, 0, dict(iter=0, psnr=0, ssim=0)
    total_iters = opt['train']['total_iter']
    while current_iter <= total_iters:
        sampler.set_epoch(epoch)
        prefetcher.reset()
        data = prefetcher.next()
        while data is not None:
            current_iter += 1
            if current_iter > total_iters:
                break
            model.update_learning_rate(current_iter, warmup_iter=opt['train'].get('warmup_iter', -1))
            {step}
            if current_iter % opt['logger']['print_freq'] == 0:
                logger.info('iter: ' + str(current_iter) + ', ' + str(dict(model.get_current_log())))
            if current_iter % opt['logger']['save_checkpoint_freq'] == 0:
                model.save(epoch, current_iter)
            if current_iter % opt['val']['val_freq'] == 0:
                found = model.validation(val_loader, current_iter, None, opt['val']['save_img'], True, True)
                if PROGRESSIVE and found > best['psnr']:
                    best.update(psnr=found, iter=current_iter)
                    model.save_best(best)
            data = prefetcher.next()
        epoch += 1
    model.save(epoch=-1, current_iter=-1)
    model.validation(val_loader, current_iter, None, opt['val']['save_img'])
    logger.info('End of training.')


if __name__ == '__main__':
    main()
'''
STEPS = {
    'plain': '''
            model.feed_data(data, is_val=False)
            model.optimize_parameters(current_iter, None)
''',
    'progressive': '''
            train = opt['datasets']['train']
            stage = sum(current_iter > sum(train['iters'][:i + 1]) for i in range(len(train['iters']) - 1))
            count, size = train['mini_batch_sizes'][stage], train['gt_sizes'][stage]
            model.feed_train_data({key: data[key][:count, :, :size, :size] for key in ('lq', 'gt')})
            model.optimize_parameters(current_iter)
'''}
TEST = '''
from os import path as osp
from basicsr.data import create_dataloader, create_dataset
from basicsr.models import create_model
from basicsr.train import parse_options
from basicsr.utils import get_root_logger, make_exp_dirs


def main():
    opt = parse_options(is_train=False)
    make_exp_dirs(opt)
    get_root_logger(log_file=osp.join(opt['path']['log'], 'test.log'))
    loaders = [create_dataloader(create_dataset(dataset_opt), dataset_opt, opt['num_gpu'])
               for _, dataset_opt in sorted(opt['datasets'].items())]
    model = create_model(opt)
    for loader in loaders:
        model.validation(loader, opt['name'], None, opt['val']['save_img'], rgb2bgr=True, use_image=True)


if __name__ == '__main__':
    main()
'''
FLAGS = {'plain': '-opt', 'progressive': '--opt'}
"""Retinexformer's scripts take the second."""
TAKEN = ('utils/dist_util.py', 'utils/img_util.py', 'utils/logger.py', 'utils/misc.py', 'models/lr_scheduler.py',
         'data/data_sampler.py', 'data/prefetch_dataloader.py')
MISSING = ('_initialize_best_metric_results', '_update_best_metric_result', 'model_ema', 'get_optimizer')


def make_fork(folder, loop):
    """Write the code base; ``loop`` is 'progressive' (Restormer, Retinexformer) or 'plain' (NAFNet)."""
    installed = basicsr_folder()
    files = {'utils/__init__.py': UTILS, 'utils/options.py': OPTIONS, 'models/__init__.py': MODELS,
             'models/archs/__init__.py': ARCHS, 'models/image_restoration_model.py': MODEL,
             'models/losses/__init__.py': 'from torch.nn import L1Loss\n', 'data/__init__.py': DATA,
             'metrics/__init__.py': METRICS, 'metrics/psnr_ssim.py': PSNR_SSIM, 'test.py': TEST,
             'train.py': TRAIN.replace('{progressive}', str(loop == 'progressive')).replace(
                 '{flag!r}', repr(FLAGS[loop])).replace('{step}', STEPS[loop].strip()),
             'models/base_model.py': base_model((installed / 'models/base_model.py').read_text())}
    for name, text in files.items():
        (folder / 'basicsr' / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / 'basicsr' / name).write_text(text)
    for name in TAKEN:
        shutil.copy(installed / name, folder / 'basicsr' / name)
    return folder


def base_model(text):
    """BasicSR's BaseModel without what came later, and with the validation's further arguments."""
    tree = ast.parse(text)
    cls = next(node for node in tree.body if isinstance(node, ast.ClassDef))
    cls.body = [node for node in cls.body if getattr(node, 'name', '') not in MISSING]
    text = ast.unparse(tree)
    assert 'save_img=False)' in text and 'tb_logger, save_img)' in text
    return text.replace('save_img=False)', 'save_img=False, rgb2bgr=True, use_image=True)').replace(
        'tb_logger, save_img)', 'tb_logger, save_img, rgb2bgr, use_image)')
