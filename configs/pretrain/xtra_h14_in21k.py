"""XTRA-H/14, 631 M encoder parameters, on ImageNet-21k (13.1 M images): 80.9 % attentive probe.

ImageNet-21k is its winter 2021 release. As it has no validation images, ImageNet-1k's are used.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.name = "xtra_h14_in21k"
    config.epochs = 100.0
    config.model.variant = "huge"
    config.model.image_size = 224
    config.model.patch_size = 14
    config.model.drop_path = 0.2
    config.predictor.hidden = 5120
    config.predictor.width = 640
    config.predictor.num_heads = 8
    config.head.hidden = 9408
    config.optim.warmup_epochs = 3.0
    config.data.dataset = "imagenet21k"
    config.data.eval_dataset = "imagenet2012"
    config.data.eval_resize = 256
    return config
