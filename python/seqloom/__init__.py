"""seqloom inside PyTorch.

``import seqloom`` loads the library's ops as ``torch.ops.seqloom.*``, with gradients, autocast and ``torch.compile``.

- ``seqloom.nn``: every mixer of seqloom as a ``torch.nn.Module``
- ``seqloom.load_checkpoint``, ``seqloom.save_checkpoint``: weights to and from the seqloom binary
- ``seqloom.compat``: drop-ins for other packages' kernels
"""

from seqloom import _library

__version__ = "0.1.0"

LIBRARY = _library.load()
