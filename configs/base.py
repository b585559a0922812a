"""Every key of a pretraining run, with its unit or meaning, and the method's common recipe.

As it stands it trains ViT-B/16 on ImageNet-1k for 100 epochs. Other configs start from here and
change what their experiment changes:

    from configs import base

    def get_config():
        config = base.get_config()
        config.model.variant = "large"
        return config
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    return config_dict.create(
        name="xtra",  # of the run, in logs and reports
        seed=0,  # of the initial weights, the data order, augmentation and stochastic depth
        batch_size=2048,  # images per optimizer step, over all devices and microbatches
        accumulate=1,  # microbatches per step: a share of the memory for the same gradient
        epochs=100.0,  # length of the run in passes over the training set, or 0 and ...
        steps=0,  # ... its length in optimizer steps: exactly one of the two is above 0
        init_from="",  # checkpoint whose weights, without optimizer state, to start from
        log_every=50,  # steps between lines of metrics
        eval_every=2500,  # steps between validations, 0 for one at the end only
        save_every=1000,  # steps between checkpoints
        keep_checkpoints=3,  # how many of the last checkpoints stay on disk
        profile_at=0,  # step from which three are traced for xprof, in WORKDIR/profile; 0: none
        compilation_cache="auto",  # folder of compiled programs; auto: in ~/.cache, "": keep none
        model=_model(),
        predictor=_predictor(),
        head=_head(),
        loss=_loss(),
        optim=_optim(),
        data=_data(),
        signals=_signals(),
        mesh=mesh(),
    )


def _model():
    return dict(
        variant="base",  # tiny, small, base, large, huge, giant, or custom with the sizes below
        width=0,  # features per token; 0 takes the variant's, as in the next three
        depth=0,  # encoder layers
        num_heads=0,  # attention heads per encoder layer
        mlp_ratio=0.0,  # hidden width of a layer's MLP over the model's width; custom: 0 means 4
        image_size=256,  # pixels per image side
        patch_size=16,  # pixels per patch side; a patch is one token
        block_size=4,  # tokens per block side, k; the model predicts block by block
        order="raster",  # in which blocks follow each other: raster or pseudo_random
        drop_path=0.0,  # stochastic depth: rate of the last encoder layer, growing linearly from 0
        # How: bernoulli draws for every sample; subset computes each branch for as many samples as
        # the rate leaves of a device's share of the batch, and costs so much less.
        drop_path_mode="bernoulli",
        dtype="bfloat16",  # of the encoder's computations: float32 or bfloat16
        # xla runs everywhere, as does halves, without half of what the mask hides; cudnn on NVIDIA
        # GPUs, for what computes in bfloat16; auto: cudnn there, halves on CPUs, xla elsewhere.
        attention="auto",
        scan_layers=False,  # one layer is compiled, scanned over the depth: a short, slower program
        remat="none",  # what the backward pass recomputes: none, full, or dots (all but matmuls)
        drop_last_block=True,  # leave out the last block, which changes neither loss nor gradient
    )


def _predictor():
    return dict(
        hidden=4096,  # hidden width of the projection between encoder and predictor
        width=768,  # features per token
        depth=8,  # layers
        num_heads=6,  # attention heads per layer
        # The published mixed precision leaves the predictor and the pixel heads in float32.
        dtype="float32",  # of their computations: float32 or bfloat16
    )


def _head():
    return dict(
        hidden=6144,  # hidden width of a pixel head
        # m, the number of heads: head j predicts the (1 + j)-th block ahead. With 0 the model is an
        # encoder alone, as imported ones may be; it can be probed and not pretrained.
        num_tokens=1,
    )


def _loss():
    return dict(
        kind="mse",  # distance between predicted and true pixels: mse or l1
        norm_pix=True,  # targets are normalised by the mean and spread of their own block
    )


def _optim():
    return dict(
        lr=1e-3,  # peak learning rate; not scaled by the batch
        warmup_lr=1e-4,  # learning rate of the first step
        end_lr=1e-6,  # learning rate at the end of the cosine
        warmup_epochs=10.0,  # length of the warm-up of a run measured in epochs ...
        warmup_steps=0,  # ... or its length in steps; at most one of the two is above 0
        beta1=0.9,  # AdamW: decay of the first moment
        beta2=0.95,  # AdamW: decay of the second moment
        eps=1e-8,  # AdamW: added to the root of the second moment
        weight_decay=0.05,  # of everything with two or more dimensions that is not a bias
        mu_dtype="float32",  # in which the first moment is kept, or bfloat16
        clip_norm=1.0,  # largest global norm of the gradient, 0 for no clipping
        reduce_dtype="float32",  # in which devices sum the gradients of kernels, or bfloat16
    )


def _data():
    return dict(
        dataset="imagenet2012",  # see `xtra prepare --list`, or folder; several with commas
        data_dir="",  # where it lies: "" is TFDS's default; for a folder, the folder
        train_split="train",  # of all data sets, or one for each with commas
        mixture=(),  # of several data sets: the share of samples from each, () for their sizes'
        subset="",  # of the training images: 10%, stratified:10% (of each class) or list:FILE
        eval_dataset="",  # another data set to validate on; "" is the same one
        eval_split="validation",  # "" for a set without one: nothing is validated
        crop_scale=(0.3, 1.0),  # random resized crop: area, as a share of the image's
        crop_ratio=(0.75, 1.5),  # random resized crop: width over height
        flip=0.5,  # probability of a horizontal flip
        eval_resize=300,  # validation: pixels of the short side, before the centre crop
        mean=(0.485, 0.456, 0.406),  # of the red, green and blue channel, in [0, 1]: ImageNet's
        std=(0.229, 0.224, 0.225),
        resize="exact",  # of crops: exact, device (in the train step), or fast (see data/resize.py)
        num_workers=-1,  # processes that decode: -1 by cores, in 1/4 of the memory; 0 for threads
        prefetch=1,  # batches that each of them keeps ready
        bad_fraction=0.001,  # share of images that may be broken (ten are always allowed); 0: none
    )


def _signals():
    """What the encoder is good for already, without training a probe: few-shot and k-NN."""
    return dict(
        every=0,  # steps between measurements, beside one at the end; 0 for none at all
        dataset="",  # a small labelled set, in data.data_dir, which need not be the training's
        train_split="train",  # where shots and neighbours are taken from
        eval_split="test",  # what they are tried on
        max_gib=4.0,  # decoded images are kept in memory if they take no more, over all processes
    )


def mesh():
    """Devices per axis, for probes too; one axis may be -1, which is all the devices left."""
    return dict(
        data=-1,  # share out the batch
        fsdp=1,  # share out the batch, the parameters and the optimizer state
        tensor=1,  # share out attention heads and MLPs
    )
