"""A small XTRA on scikit-learn's digits: minutes on two CPU cores. `xtra demo` runs it."""

from configs import base


def get_config():
    config = base.get_config()
    config.name = "demo"
    config.batch_size = 64
    config.epochs = 0.0
    config.steps = 450
    config.log_every = 10
    config.eval_every = 150
    config.save_every = 50

    config.model.update(
        variant="custom",
        width=96,
        depth=4,
        num_heads=3,
        image_size=48,
        patch_size=8,
        block_size=2,
        dtype="float32",
    )
    config.predictor.update(hidden=256, width=96, depth=2, num_heads=3)
    config.head.hidden = 384

    config.optim.warmup_epochs = 0.0
    config.optim.lr = 3e-3
    config.optim.warmup_lr = 3e-4
    config.optim.warmup_steps = 45

    config.data.update(
        dataset="digits",
        eval_split="test",
        crop_scale=(0.7, 1.0),
        crop_ratio=(0.75, 1.33),
        flip=0.0,  # a mirrored 2 is no digit
        eval_resize=48,
        mean=(0.305, 0.305, 0.305),  # of the scans, which are grey
        std=(0.376, 0.376, 0.376),
        num_workers=0,
        prefetch=2,
    )
    return config
