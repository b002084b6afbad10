"""Every mixer of seqloom as a ``torch.nn.Module``, and whole language models.

``Mixer("mamba", 256, d_state=16)`` and ``Mamba(256, d_state=16)`` are the same. The classes are made from seqloom's
registry: names, options, defaults and meanings are those of a recipe. Parameters are named as in seqloom's checkpoints.
"""

from seqloom.nn._decoder import Decoder, load_checkpoint, save_checkpoint
from seqloom.nn._memory import Memory
from seqloom.nn._mixers import CLASSES, REGISTRY, Mixer

globals().update(CLASSES)

__all__ = ["REGISTRY", "Decoder", "Memory", "Mixer", "load_checkpoint", "save_checkpoint", *CLASSES]
