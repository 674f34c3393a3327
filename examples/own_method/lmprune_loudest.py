"""A method of one's own as a package: after `pip install examples/own_method`, `lmprune prune --method loudest` works.

Without installing it, `lmprune prune … --plugin examples/own_method/plugin.py` does the same.
"""

import lmprune


@lmprune.criterion("loudest", needs={"sum_h2"})
def loudest(ffn, statistics, generator):
    """rms(h_j) · ‖down_j‖₁: how loud a neuron is, times all that it says. One score a neuron, larger = keep."""
    return statistics.per_token("sum_h2").sqrt() * ffn.reader().detach().float().abs().sum(1).cpu()


LOUDEST = lmprune.Method("loudest", "loudest", summary="rms(h)·‖down‖₁", source="an example")
