"""Peak memory as comparisons report it."""
from pathlib import Path

import pytest
import torch

from rdbm_plugin.evaluation.cost import peak_memory


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='measured under Linux')
@pytest.mark.parametrize('side', [50, 2500])
def test_memory_that_earlier_work_left_to_the_allocator_counts(side):
    """Small tensors stay in the heap of the C library when they are freed, large ones do not."""
    count = 150 * 2**20 // (4 * side**2)

    def work():
        return [torch.ones(side, side) for _ in range(count)]
    for _ in range(2):
        with peak_memory(torch.device('cpu')) as found:
            work()
        assert found.mib == pytest.approx(150, rel=0.2)
