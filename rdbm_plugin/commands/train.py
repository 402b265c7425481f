"""``rdbm train``: BasicSR's training with the plugin registered, even where BasicSR's own script cannot run."""
from pathlib import Path

from rdbm_plugin.basicsr_host import compat, lookup


def main() -> None:
    """Train with BasicSR's command-line arguments; experiments/ is created in the working directory."""
    lookup.need_registries()
    from basicsr import train

    from rdbm_plugin.commands import pipeline
    pipeline.check_before_writing(train)
    compat.distribute_on_cpus()
    pipeline.resume_exactly(train)
    pipeline.know_more_optimizers()
    compat.mend_prefetcher()
    train.train_pipeline(str(Path.cwd()))
    compat.end_distributed()
