"""``rdbm compare``: score any BasicSR models and finished results on the same images, by the same protocol."""
from argparse import ArgumentParser, Namespace
from pathlib import Path

from rdbm_plugin.basicsr_host import lookup
from rdbm_plugin.config.options import OptionError


def arguments() -> Namespace:
    """Parse the command line."""
    parser = ArgumentParser(prog='rdbm compare', description=__doc__.split(': ', 1)[1])
    parser.add_argument('methods', nargs='+', metavar='METHOD',
                        help='training or test option files of any model_type, or folders of restored images '
                             '(results/NAME, or a folder with SET/IMAGE.png)')
    parser.add_argument('--sets', help='option file whose test_ or val_ blocks and metrics apply to all methods '
                                       '(default: the first option file)')
    parser.add_argument('-o', '--out', default='comparison', help='output folder for tables, pictures and page.html')
    parser.add_argument('--names', nargs='+', help='one name per method, in order (default: file and folder names)')
    parser.add_argument('--page-images', type=int, default=3, help='number of images per set on the page')
    parser.add_argument('--no-cost', action='store_true', help='skip measuring time, memory and multiply-adds')
    parser.add_argument('--force_yml', nargs='+', default=[], help='changes to every option file, as in rdbm train')
    return parser.parse_args()


def main() -> int:
    """Run the comparison, and return 1 if a method failed, else 0."""
    args = arguments()
    lookup.need_registries()
    from rdbm_plugin.commands.pipeline import name_weights, read_options
    from rdbm_plugin.commands.preflight import check_options
    from rdbm_plugin.evaluation.comparison import Comparison
    from rdbm_plugin.evaluation.methods import Method, unique_names
    from rdbm_plugin.evaluation.scoring import check_sizes
    from rdbm_plugin.models.option_checks import check_metrics
    files = [given for given in args.methods if not Path(given).is_dir()]
    if not (args.sets or files):
        raise OptionError('--sets: missing; all methods are folders, so an option file must define the test sets.')
    if args.names and len(args.names) != len(args.methods):
        raise OptionError(f'--names: found {len(args.names)} for {len(args.methods)} methods.')
    Path(args.out).mkdir(parents=True, exist_ok=True)
    file = args.sets or files[0]
    opt = read_options(file, args.force_yml)
    comparison = Comparison(file, opt, Path(args.out))
    check_metrics(opt)
    check_sizes(opt)
    names = unique_names(args.names or [Path(each).stem if each in files else Path(each).name for each in args.methods])
    methods = [Method(name, Path(args.out, 'methods', name) if given in files else Path(given))
               for name, given in zip(names, args.methods)]
    for method, given in zip(methods, args.methods):
        try:
            if given in files:
                method.opt = read_options(given, args.force_yml)
                # A test file names its checkpoint; a training file stands for the network that it trained.
                name_weights(method.opt, given, method.opt['name'])
                check_options({**method.opt, 'datasets': {}})
        except OptionError as error:
            method.fault = str(error)
    comparison.restore(methods, timed=not args.no_cost)
    comparison.score(methods, args.page_images)
    comparison.write(methods)
    return int(any(method.fault for method in methods))
