"""Packaging of rdbm_plugin. BasicSR is an extra: pip's build isolation would fetch torch twice for it."""
import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (HERE / 'rdbm_plugin/__init__.py').read_text(encoding='utf-8')).group(1)
# The option files train with timm's Muon; no plain dependency, as the environment of a lab may pin an older timm.
TIMM = ['timm>=1.0.31']
BASICSR = ['basicsr>=1.3.4.9; python_version < "3.13"', *TIMM]
BOARD = ['tensorboard>=2.12']
PLOT = ['matplotlib>=3.6']
PHOTOS = ['scikit-learn>=1.2', *PLOT]  # what the photos of options/train_rdbm_shipped.yml come with
SAFETENSORS = ['safetensors>=0.4']
FID = ['torch-fidelity>=0.4,<0.5']
SPANDREL = ['spandrel>=0.4.1']
MMENGINE = ['mmengine>=0.10.7,<0.11']
DEMO = ['gradio>=5.30']
HEIC = ['pillow-heif>=1']
EXR = ['OpenEXR>=3.5']
ONNX = ['onnx>=1.23', 'onnxscript>=0.7', 'onnxruntime>=1.23']
DOCS = ['zensical>=0.0.73; python_version >= "3.11"', 'mkdocstrings[python]>=0.27', 'l2m4m>=1.0.4']
TEST = ['pytest>=7', 'pytest-xdist>=3', 'ruff>=0.6', 'playwright>=1.40', 'hypothesis>=6', *PHOTOS, *SAFETENSORS,
        *SPANDREL, *MMENGINE, *FID, *ONNX, *DEMO, *DOCS, *HEIC, *EXR]
# The option files lie beside the package in a clone and within it where it is installed.
OPTION_FILES = {f'rdbm_plugin.option_files{name}': f'options{folder}' for name, folder in (
    ('', ''), ('.suites', '/suites'), ('.mmengine', '/mmengine'))}

setup(
    name='rdbm_plugin',
    version=VERSION,
    description='Residual Diffusion Bridge Model for image restoration, as a plugin for BasicSR',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=[*find_packages(include=['rdbm_plugin', 'rdbm_plugin.*']), *OPTION_FILES],
    package_dir=OPTION_FILES,
    package_data={**{name: ['*.yml', '*.py'] for name in OPTION_FILES},
                  'rdbm_plugin': ['py.typed', 'inference/weights/*', 'evaluation/*.html',
                                  'basicsr_host/fork_options/*.yml']},
    python_requires='>=3.10',
    install_requires=['torch>=2.1', 'torchvision>=0.16', 'numpy>=1.23.5', 'opencv-python>=4.5.5', 'pillow>=10.1',
                      'tifffile>=2021.8.30', 'lmdb>=1.4.1', 'pyyaml>=6.0.1', 'scikit-image>=0.20', 'tqdm>=4.60'],
    extras_require={'basicsr': BASICSR, 'timm': TIMM, 'board': BOARD, 'plot': PLOT, 'photos': PHOTOS,
                    'safetensors': SAFETENSORS, 'spandrel': SPANDREL, 'mmengine': MMENGINE, 'fid': FID, 'onnx': ONNX,
                    'demo': DEMO, 'docs': DOCS, 'heic': HEIC, 'exr': EXR,
                    'test': BASICSR + TEST, 'all': BASICSR + TEST},
    entry_points={'console_scripts': ['rdbm = rdbm_plugin.__main__:main']},
    classifiers=['Programming Language :: Python :: 3', 'Topic :: Scientific/Engineering :: Image Processing'],
)
