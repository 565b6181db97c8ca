"""How dense a core is, for reports."""

import numpy as np

from snaprl.cores.sparsity.trees import MaskTree, flat
from snaprl.cores.types import Params


def density(tree: Params | MaskTree) -> dict[str, float]:
    """Tells which share of each leaf is not 0.

    Args:
      tree: a mask, of which leaves that are missing are not counted; or parameters, all of which
        are: biases that start at 0 too.

    Returns:
      The share of each leaf, by its name, such as `hr/kernel`; and `total`, the share of all
      entries.

    Raises:
      ValueError: the tree has no entries.

    Example:
      >>> density({"hr": {"kernel": np.eye(4)}, "hz": {"kernel": np.ones((4, 4))}})
      {'hr/kernel': 0.25, 'hz/kernel': 1.0, 'total': 0.625}
    """
    leaves = {"/".join(map(str, path)): np.asarray(leaf) for path, leaf in flat(tree).items()}
    size = sum(leaf.size for leaf in leaves.values())
    if not size:
        raise ValueError("the tree has no entries; give a mask or parameters")
    present = {name: int(np.count_nonzero(leaf)) for name, leaf in leaves.items()}
    shares = {name: present[name] / max(leaf.size, 1) for name, leaf in leaves.items()}
    return shares | {"total": sum(present.values()) / size}
