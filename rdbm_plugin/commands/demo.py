"""``rdbm demo``: a local web page for trying weights on photos. Needs Gradio: pip install rdbm_plugin[demo]."""
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from rdbm_plugin.data.clean_sources import open_clean
from rdbm_plugin.data.degradations import TASKS, Ranges, degrade, draw
from rdbm_plugin.data.image_source import ImageError, to_float
from rdbm_plugin.data.photo_file import Photo, read_photo, write_photo
from rdbm_plugin.inference.restorer import Restorer

LARGEST_FILE = 50
"""Maximum size of an upload, in MiB."""


def arguments() -> Namespace:
    """Parse the command line."""
    parser = ArgumentParser(prog='rdbm demo', description='A local web page for trying weights on photos.')
    parser.add_argument('--checkpoint', nargs='+', default=['shipped'],
                        help='weights or folders of training runs to compare (default: those of the package)')
    parser.add_argument('--host', default='127.0.0.1', help='address to listen on; 0.0.0.0 admits the whole network')
    parser.add_argument('--port', type=int, default=7860)
    parser.add_argument('--max-megapixels', type=float, default=12, help='refuse photos larger than this')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:1, mps')
    parser.add_argument('--no-browser', action='store_true', help='do not open the page')
    return parser.parse_args()


def main() -> int:
    """Serve the page until it is interrupted."""
    args = arguments()
    import gradio
    with tempfile.TemporaryDirectory(prefix='rdbm_demo_') as folder:
        page = build(gradio, args, Path(folder))
        page.queue(default_concurrency_limit=1).launch(
            server_name=args.host, server_port=args.port, inbrowser=not args.no_browser, show_error=True,
            max_file_size=LARGEST_FILE * 2**20, allowed_paths=[folder])
    return 0


def build(gradio: Any, args: Namespace, folder: Path) -> Any:
    """Build the page; its output files go into ``folder``."""
    @lru_cache(maxsize=8)
    def restorer(checkpoint: str, steps: int | None) -> Restorer:
        return Restorer(checkpoint, steps=steps, device=args.device)

    names = {_name(Path(each)): each for each in args.checkpoint}
    # All weights are loaded now, so that unreadable ones raise an error before the page is served.
    default = [restorer(checkpoint, None).sampler.nfe for checkpoint in names.values()]
    # Gradio identifies the progress parameter by its default value.
    shown = gradio.Progress()

    def restore(path: str | None, steps: float, chosen: Sequence[str], progress: Any = shown) -> list[Any]:
        if not (path and chosen):
            raise gradio.Error(f'Choose {"weights" if path else "a photo"} first.')
        try:
            before = read_photo(path, args.max_megapixels)
        except ImageError as error:
            # Neither --max-megapixels nor the name of the temporary file means anything to a user of the page.
            raise gradio.Error(str(error).removeprefix(f'{path}: ').split('; if this is intended')[0]) from None
        out: list[Any] = []
        for place, (name, checkpoint) in enumerate(names.items()):
            if name not in chosen:
                out += [gradio.update(visible=False)] * 2
                continue
            def show(share: float, place: int = place, text: str = f'Restoring with {name}') -> None:
                progress((place + share) / len(names), desc=text)

            made = before.with_rgb(restorer(checkpoint, int(steps))(to_float(before.rgb), progress=show))
            file = Path(tempfile.mkdtemp(dir=folder)) / f'{Path(path).stem}_restored.png'
            write_photo(file, made)
            out += [gradio.update(value=(before.bytes_rgb(), made.bytes_rgb()), visible=True),
                    gradio.update(value=str(file), visible=True)]
        return out

    with gradio.Blocks(title='RDBM', analytics_enabled=False) as page:
        gradio.Markdown('# RDBM: restore a photo\nRain, darkness, snow, haze or blur. Nothing leaves this machine.')
        with gradio.Row():
            with gradio.Column(scale=1):
                photo = gradio.Image(type='filepath', label='Photo', sources=['upload', 'clipboard'], height=320)
                steps = gradio.Slider(1, 20, default[0], step=1, label='Network evaluations')
                weights = gradio.CheckboxGroup(list(names), value=list(names), label='Weights', visible=len(names) > 1)
                button = gradio.Button('Restore', variant='primary')
                gradio.Examples([[str(path)] for path in examples(folder)], photo)
            with gradio.Column(scale=2):
                results = []
                for name in names:
                    results += [gradio.ImageSlider(label=f'before and after: {name}', interactive=False, height=560),
                                gradio.DownloadButton(f'Download ({name})', visible=False)]
        button.click(restore, [photo, steps, weights], results)
    return page


def _name(path: Path) -> str:
    """Return the name of a run: its folder below experiments, and its network file if one is given."""
    return ' '.join(part for part in path.with_suffix('').parts[-3:] if part.strip('./') not in (
        '', 'models', 'experiments'))


def examples(folder: Path) -> list[Path]:
    """Write a degraded photo of scikit-image for each task into ``folder``, and return the files."""
    source = open_clean('embedded', 'val')
    made = []
    for number, task in enumerate(TASKS):
        clean, rng = to_float(source.decode(number % len(source))), np.random.default_rng(number)
        damaged = degrade(clean, draw(task, rng, Ranges('wide', (0.5, 0.5), 0, 0)), rng)
        made.append(folder / f'{task}.png')
        write_photo(made[-1], Photo(np.rint(damaged * 255).astype(np.uint8)))
    return made
