"""Views: crops that follow from the image alone, and the means of several views."""

from __future__ import annotations

import pytest
import torch

from builders import tiny_images, tiny_network
from lingula.scoring.scoring import score_batch
from lingula.scoring.views import FLOOR, VIEWS, View, geometric, key_of, merge_views
from lingula.system.errors import InputError

KEYS = [11, 22, 33]


def test_random_crops_follow_the_image_alone() -> None:
    crop = View("random crop", side=0.8, crop=1)
    images = tiny_images()
    together = crop(images, KEYS)
    for i in (2, 0, 1):
        torch.testing.assert_close(crop(images[i : i + 1], KEYS[i : i + 1])[0], together[i])
    other = View("random crop", side=0.8, crop=2)(images, KEYS)
    assert not torch.equal(together, other)
    assert not torch.equal(crop(images, [KEYS[1], *KEYS[1:]])[0], together[0])
    assert key_of("/a/files/p10/s50/abc.jpg") == key_of("abc.png") != key_of("abd.png")
    net = tiny_network().eval()
    order = score_batch(net, images, VIEWS["paper"][::-1], "geometric", net, KEYS)
    torch.testing.assert_close(
        score_batch(net, images, VIEWS["paper"], "geometric", net, KEYS), order, atol=1e-9, rtol=0
    )


def test_views_and_their_means() -> None:
    logits = torch.logit(torch.tensor([[[0.2]], [[0.8]]], dtype=torch.float64))
    assert geometric(logits).item() == pytest.approx(0.4)
    many = torch.logit(torch.full((400, 1, 1), 1e-3))
    assert geometric(many).item() == pytest.approx(1e-3, rel=1e-3)
    zero = torch.tensor([[[-1000.0]], [[2.2]]])
    assert geometric(zero).item() == pytest.approx((FLOOR * 0.9002) ** 0.5, rel=1e-3)
    one = torch.randn(1, 2, 3)
    five = one.expand(5, -1, -1)
    torch.testing.assert_close(merge_views(five, "geometric"), one[0].double().sigmoid())
    net = tiny_network().eval()
    with pytest.raises(InputError, match="uint8"):
        score_batch(net, tiny_images().float() / 255, VIEWS["none"], "geometric", net, KEYS)
    flipped = score_batch(net, tiny_images().flip(-1), VIEWS["flip"], "geometric", net, KEYS)
    torch.testing.assert_close(
        flipped,
        score_batch(net, tiny_images(), VIEWS["flip"], "geometric", net, KEYS),
        atol=1e-6,
        rtol=0,
    )
    assert score_batch(net, tiny_images(), VIEWS["paper"], "geometric", net, KEYS).shape == (3, 5)
