"""The comparison with diffusers on a GPU: it must see a difference in one weight."""

from __future__ import annotations

import copy

import pytest
import torch

from benchmarks.gpu_training import Theirs, cases, compare
from diptych.core.errors import UserError

CASE, _ = cases(True, torch.device("cpu"))


def test_networks_that_differ_in_one_weight_are_not_compared() -> None:
    torch.manual_seed(0)
    network = CASE.config.unet.build()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    other = copy.deepcopy(network)

    def found() -> dict[str, float]:
        return compare(network, lambda x, times, context: other(x, times, context=context), CASE)

    assert found() == {"float32": 0, "bfloat16": 0}
    for weight in (*list(other.parameters())[:: len(list(other.parameters())) // 3], list(other.parameters())[-1]):
        kept = weight.detach().clone()
        weight.data.view(-1)[0] += 5.0
        with pytest.raises(UserError, match=r"the two networks differ by .* in float32: they are not compared"):
            found()
        weight.data.copy_(kept)


@pytest.mark.slow
def test_ours_and_theirs_are_the_same_network_until_one_weight_differs() -> None:
    pytest.importorskip("diffusers")
    torch.manual_seed(0)
    network, theirs = CASE.config.unet.build(), Theirs(CASE)
    assert theirs.agree(network) == pytest.approx({"float32": 0, "bfloat16": 0}, abs=1e-5)
    assert not {one.data_ptr() for one in theirs.unet.parameters()} & {one.data_ptr() for one in network.parameters()}
    with torch.no_grad():
        theirs.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.weight[0, 0] += 5.0
    with pytest.raises(UserError, match=r"the two networks differ by .* in float32: they are not compared"):
        compare(network, lambda x, times, context: theirs.unet(x, times, context, return_dict=False)[0], CASE)
