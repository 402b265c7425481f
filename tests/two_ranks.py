"""Three steps of training on the data of the quickstart: losses and gradients of the last one, and weights after it.

    python tests/two_ranks.py OUT SAMPLES_A_RANK MICRO_BATCHES OPTIMIZER CRITERION [poison]
    python -m torch.distributed.run --standalone --nproc_per_node=2 tests/two_ranks.py ...

With poison the last rank meets one pixel that is no number, in the second step.
"""
import os
import sys

import torch
from conftest import training_options
from torch import distributed
from torch.utils.data import DataLoader

import rdbm_plugin.registration  # noqa: F401
from rdbm_plugin.data.synthetic_universal_dataset import SyntheticUniversalDataset
from rdbm_plugin.models.rdbm_model import RDBMModel

out, samples, parts, optimizer, criterion = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:6]
torch.set_num_threads(1)
ranks = int(os.environ.get('WORLD_SIZE', '1'))
if ranks > 1:
    distributed.init_process_group('gloo')
rank = int(os.environ.get('RANK', '0'))
opt = training_options([
    f'datasets:train:batch_size_per_gpu={samples}', 'datasets:train:gt_size=32', 'train:amp=none',
    f'train:micro_batches={parts}', f'train:pixel_opt:criterion={criterion}', 'train:grad_clip=1',
    'bridge:modulation=one', 'train:own_start_share=0.5'], rank, ranks)
opt['train']['optim_g'] = {'type': optimizer, 'lr': 0.1 if optimizer == 'SGD' else 1e-3}
torch.manual_seed(0)
model = RDBMModel(opt)
torch.manual_seed(rank)
dataset = SyntheticUniversalDataset(opt['datasets']['train'])
loader = iter(DataLoader(dataset, batch_size=samples, sampler=[0] * 3 * samples))
found = {}
for iteration in (1, 2, 3):
    batch = next(loader)
    if sys.argv[6:] == ['poison'] and iteration == 2 and rank == ranks - 1:
        batch['lq'][1, 0, 3, 4] = float('nan')
    model.feed_data(batch)
    model.optimize_parameters(iteration)
network = model.get_bare_model(model.net_g)
found['losses'] = dict(model.get_current_log())
found['gradients'] = {name: p.grad for name, p in network.named_parameters()}
found['weights'] = network.state_dict()
found['average'] = model.net_g_ema.state_dict()
found['skipped'] = model.step.guard.in_all
if rank == 0:
    torch.save(found, out)
if ranks > 1:
    distributed.barrier()
    distributed.destroy_process_group()
