"""Our BERT against transformers', to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diptych.core.errors import UserError
from diptych.networks.bert_network import BertNetwork, BertShape

SMALL: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 30,
}


@pytest.mark.parametrize("act", ["gelu", "relu", "silu"])  # the last is one that transformers alone has
def test_outputs_are_those_of_transformers_to_the_bit(act: str) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    theirs = BertModel(BertConfig(**SMALL, hidden_act=act), add_pooling_layer=False).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    ours = BertShape(**SMALL, hidden_act=act).build()
    ours.load_state_dict(theirs.state_dict(), assign=True)
    for count in (1, 3):
        ids = torch.randint(60, (count, 30))
        lengths = torch.randint(1, 29, (count, 1))
        padded = (torch.arange(30) < lengths).long()
        added = torch.zeros(count, 1, 1, 30).masked_fill(padded[:, None, None] == 0, torch.finfo(torch.float32).min)
        for mask in (torch.ones_like(padded), padded, added):
            with torch.no_grad():
                expected = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
                assert torch.equal(ours(input_ids=ids, attention_mask=mask).last_hidden_state, expected)
        with torch.no_grad():
            assert torch.equal(ours(ids[:, :7]).last_hidden_state, theirs(ids[:, :7]).last_hidden_state)
            assert not torch.equal(ours(ids, padded).last_hidden_state, ours(ids).last_hidden_state)


def test_a_published_bert_has_its_parameters() -> None:
    with torch.device("meta"):
        network = BertNetwork(BertShape())
    assert sum(weight.numel() for weight in network.parameters()) == 109_482_240 - 768 * 769, "base, without its pooler"


@pytest.mark.parametrize(
    ("values", "says"),
    [({"num_attention_heads": 5}, "hidden_size must be a multiple"), ({"hidden_act": 3}, "hidden_act")],
)
def test_a_shape_that_none_has_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        BertShape.from_dict({**SMALL, **values})
    assert BertShape.from_dict({**SMALL, "initializer_range": 0.02}) == BertShape.from_dict(SMALL)
