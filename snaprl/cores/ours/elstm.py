"""eLSTM: an LSTM whose recurrence is element-wise."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from snaprl.cores.cells import Activation, register
from snaprl.cores.ours import layers
from snaprl.cores.types import Array, PyTree
from snaprl.cores.unitwise import Derivatives, UnitwiseCell, Vector


class ELSTMCell(nn.RNNCellBase):
    """An LSTM with element-wise recurrence.

        f_t = gate(F x_t + b_f + w_f * c_tm1)        z_t = act(Z x_t + b_z + w_z * c_tm1)
        c_t = f_t * c_tm1 + (1 - f_t) * z_t                                (* elementwise)
        o_t = gate(O x_t + b_o + w_o * c_t)          h_t = o_t * c_t

    Units know of each other through the inputs only: SnAp of order 1 is exact.

    Reference: Irie, Gopalakrishnan and Schmidhuber, "Exploring the Promise and Limits of Real-Time
    Recurrent Learning", ICLR 2024 (arXiv 2305.19044). We differ in the output gate: the paper's has
    a full matrix on c_t, ours the vector w_o. The full one lies after the recurrence, so it may as
    well lie after the core: `output_gate=False` gives c_t, with half the influence to carry, and
    `nn.sigmoid(nn.Dense(N)(x_t) + nn.Dense(N)(c_t)) * c_t` is the paper's h_t.

    Parameters: layers `if` (F), `iz` (Z), `io` (O), each with a bias, and `wf`, `wz`, `wo`, `[N]`
    each. The carry is (c, h), `[B, N]` each; without the output gate it is c.

    Attributes:
      features: N.
      output_gate: whether there is one; without it the outputs are c_t.
      gate_fn: gate.
      activation_fn: act.
      kernel_init: for F, Z and O.
      recurrent_init: for w_f, w_z and w_o.
      bias_init: for the biases.
      carry_init: for the carry.
      dtype: of the linear maps; None for what inputs and parameters promote to.
      param_dtype: of the parameters and the carry.
    """

    features: int
    output_gate: bool = True
    gate_fn: Callable[..., Any] = nn.sigmoid
    activation_fn: Callable[..., Any] = nn.tanh
    kernel_init: Initializer = nn.initializers.lecun_normal()
    recurrent_init: Initializer = nn.initializers.normal(0.1)
    bias_init: Initializer = nn.initializers.zeros_init()
    carry_init: Initializer = nn.initializers.zeros_init()
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, carry: PyTree, inputs: Array) -> tuple[PyTree, Array]:
        """One step: the carry and `[B, M]` to the new carry and the outputs `[B, N]`."""
        view = _view(self)
        local = dict.fromkeys(view.local, self.recurrent_init)
        return layers.call(self, view, carry, inputs, biased=view.inputs, local=local)

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> PyTree:
        """The state of streams that have seen nothing; `input_shape` is `(B, M)`."""
        return layers.initial_carry(self, rng, input_shape, states=1 + self.output_gate)

    @property
    def num_feature_axes(self) -> int:
        """Inputs are vectors."""
        return 1


def _view(cell: ELSTMCell) -> UnitwiseCell:
    return _gated(cell) if cell.output_gate else _open(cell)


def _open(cell: ELSTMCell) -> UnitwiseCell:
    """Everything up to c_t."""
    gate, activation = Activation(cell.gate_fn), Activation(cell.activation_fn)

    def phi(a: Vector, s: Vector, h: Vector, w: Vector) -> tuple[Vector, tuple]:
        del s
        f, df = gate(a[0] + w[0] * h[0])
        z, dz = activation(a[1] + w[1] * h[0])
        return (f * h[0] + (1 - f) * z,), (f, df, z, dz)

    def derivatives(saved: tuple, h_tm1: Vector, w: Vector) -> Derivatives:
        f, df, z, dz = saved
        c_tm1 = h_tm1[0]
        to_c = ((c_tm1 - z) * gate.slope(f, df), (1 - f) * activation.slope(z, dz))
        through_c = f + to_c[0] * w[0] + to_c[1] * w[1]
        return Derivatives((to_c,), ((),), ((through_c,),), (tuple(x * c_tm1 for x in to_c),))

    names = ("if", "iz"), (), 1
    return UnitwiseCell(cell.features, *names, cell.dtype, 0, phi, derivatives, local=("wf", "wz"))


def _gated(cell: ELSTMCell) -> UnitwiseCell:
    """With h_t, which nothing reads but the rest of the network."""
    gate, core = Activation(cell.gate_fn), _open(cell)

    def phi(a: Vector, s: Vector, h: Vector, w: Vector) -> tuple[Vector, tuple]:
        (c,), saved = core.phi(a[:2], s, h[:1], w[:2])
        o, do = gate(a[2] + w[2] * c)
        return (c, o * c), (saved, c, o, do)

    def derivatives(saved: tuple, h_tm1: Vector, w: Vector) -> Derivatives:
        saved, c, o, do = saved
        (to_c,), _, ((through_c,),), (own,) = core.derivatives(saved, h_tm1[:1], w[:2])
        to_o = c * gate.slope(o, do)
        c_to_h = o + to_o * w[2]
        return Derivatives(
            ((*to_c, None), (*(c_to_h * x for x in to_c), to_o)),
            ((), ()),
            ((through_c, None), (c_to_h * through_c, None)),
            ((*own, None), (*(c_to_h * x for x in own), to_o * c)),
        )

    return core._replace(
        inputs=("if", "iz", "io"),
        states=2,
        phi=phi,
        derivatives=derivatives,
        outputs=(1,),
        local=("wf", "wz", "wo"),
    )


register(ELSTMCell, _view)
