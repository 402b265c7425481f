"""Data consistency: corrections that make estimates of x0 agree with known measurements. Needs torch only.

Each function returns the ``consistency`` argument of a sampler. Images are in [-1, 1].
"""
import torch
import torch.nn.functional as F
from torch import Tensor

from rdbm_plugin.config.options import OptionError, check_int, check_number
from rdbm_plugin.samplers.sampler import Consistency


def known_pixels(mask: Tensor, image: Tensor) -> Consistency:
    """Inpainting: x0 is ``image``, (N, C, H, W), where ``mask``, bool of (N or 1, 1 or C, H, W), is true."""
    return lambda x0: torch.where(mask, image, x0)


def known_downsampling(image: Tensor, factor: int) -> Consistency:
    """Super-resolution: the means of x0 over blocks of ``factor`` x ``factor`` pixels are ``image``.

    The correction returns the nearest such x0 in least squares: it adds the error of a mean to all pixels of its block.

    Args:
        image: (N, C, H / factor, W / factor).
        factor: For both directions, at least 2.

    Raises:
        OptionError: The sizes do not fit, or ``factor`` is below 2.
    """
    check_int('factor', factor, 2)

    def consistent(x0: Tensor) -> Tensor:
        if x0.shape[-2:] != (image.shape[-2] * factor, image.shape[-1] * factor):
            raise OptionError(f'known_downsampling: found an estimate of {tuple(x0.shape[-2:])} for an image of '
                              f'{tuple(image.shape[-2:])}; expected {factor} times its size.')
        error = image - F.avg_pool2d(x0, factor)
        return x0 + error.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
    return consistent


def known_blur(image: Tensor, kernel: Tensor, noise_ratio: float = 1e-2) -> Consistency:
    """Non-blind deblurring: x0 blurred by ``kernel`` is ``image``.

    The least-squares correction is x0 + K* (image - K x0) / (|K|^2 + noise_ratio) in the Fourier domain, with periodic
    edges. It does not change frequencies that the kernel removes.

    Args:
        image: The blurred image, (N, C, H, W).
        kernel: (h, w) with odd h and w, sum 1, centred; not larger than the image.
        noise_ratio: > 0; larger values correct less and pass on less noise from ``image``.

    Raises:
        OptionError: The kernel has an even side, or ``noise_ratio`` is not positive.
    """
    height, width = kernel.shape
    if not (height % 2 and width % 2):
        raise OptionError(f'kernel: found {height}x{width}; expected odd height and width.')
    ratio = check_number('noise_ratio', noise_ratio, above=0)
    padded = image.new_zeros(image.shape[-2:])
    padded[:height, :width] = kernel
    transfer = torch.fft.rfft2(padded.roll((-(height // 2), -(width // 2)), (0, 1)))
    inverse = transfer.conj() / (transfer.abs().square() + ratio)

    def consistent(x0: Tensor) -> Tensor:
        error = torch.fft.rfft2(image - torch.fft.irfft2(torch.fft.rfft2(x0) * transfer, s=x0.shape[-2:]))
        return x0 + torch.fft.irfft2(error * inverse, s=x0.shape[-2:])
    return consistent
