"""seqloom inside PyTorch.

``import seqloom`` loads the library's ops as ``torch.ops.seqloom.*``, with gradients, autocast and ``torch.compile``.

- ``seqloom.nn``: every mixer of seqloom as a ``torch.nn.Module``
- ``seqloom.load_checkpoint``, ``seqloom.save_checkpoint``: weights to and from the seqloom binary
- ``seqloom.compat``: drop-ins for other packages' kernels
"""

from seqloom import _fakes, _library

LIBRARY = _library.load()
_fakes.register()

from seqloom import nn  # noqa: E402  needs the library
from seqloom.nn import load_checkpoint, save_checkpoint  # noqa: E402

__version__ = "0.1.0"

__all__ = ["LIBRARY", "load_checkpoint", "nn", "save_checkpoint"]
