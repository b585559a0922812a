"""The paper's ablations, ViT-B/16 on ImageNet-1k for 100 epochs: `configs/ablations.py:NAME`.

| name | what differs from the baseline |
|---|---|
| `baseline` | nothing: 256 px, patch 16, one head, blocks of 64 px, predictor 8 x 384, MSE |
| `depth_1`, `_2`, `_4`, `_8`, `_16` | layers of the predictor (8 is the baseline) |
| `width_192`, `_384`, `_576`, `_768` | width of the predictor (384, half the encoder's, is too) |
| `l1` | mean absolute error instead of mean squared error |
| `pseudo_random` | blocks in one of n fixed random orders instead of raster order |
| `blocks_1x16`, `1x32`, `1x64` | pixels per block side (64 is the baseline; 16 is k = 1) |
| `blocks_2x16`, `2x32`, `2x64` | the same with two heads, for the next block and the one after |
| `patch14_1x14`, `1x28`, `1x56` | images of 224 px, patch 14: pixels per block side |
| `patch16_1x16`, `1x32` | images of 224 px, patch 16: pixels per block side |

The published runs took 114 images per GPU on an unpublished number of GPUs; here it is 2048 in all.
"""

from configs import base

_SMALL_IMAGES = {"model.image_size": 224, "data.eval_resize": 256}

ABLATIONS = {
    "baseline": {},
    **{f"depth_{depth}": {"predictor.depth": depth} for depth in (1, 2, 4, 8, 16)},
    **{f"width_{width}": {"predictor.width": width} for width in (192, 384, 576, 768)},
    "l1": {"loss.kind": "l1"},
    "pseudo_random": {"model.order": "pseudo_random"},
    **{
        f"blocks_{heads}x{pixels}": {"head.num_tokens": heads, "model.block_size": pixels // 16}
        for heads in (1, 2)
        for pixels in (16, 32, 64)
    },
    **{
        f"patch{patch}_1x{blocks * patch}": {
            **_SMALL_IMAGES,
            "model.patch_size": patch,
            "model.block_size": blocks,
        }
        for patch, block_sizes in ((14, (1, 2, 4)), (16, (1, 2)))
        for blocks in block_sizes
    },
}
NAMES = tuple(ABLATIONS)


def get_config(name: str):
    config = base.get_config()
    config.name = f"ablation_{name}"
    config.predictor.width = 384
    config.update_from_flattened_dict(ABLATIONS[name])
    return config
