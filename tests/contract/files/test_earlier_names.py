"""Files of earlier versions can be read."""

from __future__ import annotations

from tlcli.contract.model.description import Parity


def test_a_field_is_read_by_its_earlier_name_and_written_by_todays() -> None:
    rest = {"source": "shapes", "logits": 0.0, "maps": {}, "top1_agreement": 1.0}
    parity = Parity.model_validate({"pictures": 3, **rest})
    assert parity == Parity(images=3, source="shapes", logits=0.0, maps={}, top1_agreement=1.0)
    assert parity.model_dump() == {"images": 3, **rest}
