"""Every key of a probe of a frozen encoder; the values are the published attentive recipe."""

from ml_collections import config_dict

from configs import base


def get_config() -> config_dict.ConfigDict:
    return config_dict.create(
        name="probe",  # of the run, in logs and reports
        seed=0,  # of the heads' initial weights, the data order and augmentation
        # Heads to train: attentive (tokens pooled by learned queries), linear (mean token) or both.
        # Or nothing to train: few_shot or knn, of the mean token of probe.linear_layers.
        kind="attentive",
        checkpoint="",  # workdir or checkpoint of the encoder
        # Images per optimizer step, over all devices. The encoder sees a device's share at once,
        # unless features are kept: where memory is short for that, take more devices.
        batch_size=4096,
        epochs=100.0,  # length in passes over the training set, or 0 and ...
        steps=0,  # ... its length in optimizer steps: exactly one of the two is above 0
        # The rates at which the optimizer really peaks; see configs/probe.py.
        rates=(1e-4, 3e-4, 5e-4, 1e-3, 1.5e-3, 2e-3, 4e-3),  # one head is trained for each ...
        # ... with each of these, on everything with two or more dimensions that is not a bias.
        weight_decays=(0.1,),
        label_smoothing=0.0,  # share of the target spread evenly over the classes
        # What the best head is chosen on: test, the split whose accuracy is reported, as published,
        # or heldout, a part of the training images, of every class, that no head is trained on.
        select="test",
        heldout_fraction=0.1,  # how large that part is, above 0 and below 1
        datasets="",  # a study: names of this file, with commas, to be probed one after another
        log_every=50,  # steps between lines of metrics
        eval_every=0,  # steps between evaluations, 0 for one after every epoch
        save_every=500,  # steps between checkpoints, which are removed when the probe is complete
        keep_checkpoints=1,  # how many of the last checkpoints stay on disk until then
        probe=_probe(),
        optim=_optim(),
        data=_data(),
        cache=_cache(),
        mesh=base.mesh(),
    )


def _probe():
    return dict(
        # Several values make as many heads of each rate and weight decay.
        attentive_layers=(6,),  # attentive: layers from the end whose mean the head sees
        linear_layers=(1,),  # linear: the same
        final_norm=(False,),  # whether the encoder's final LayerNorm is applied to each layer first
        num_queries=1,  # attentive: learned queries; their outputs are averaged
        num_heads=16,  # attentive: attention heads
        # Heads of one kind and the same features that are computed at once, 0 for all of them:
        # fewer bound the memory that grows with the batch, take more time, and change nothing else.
        heads_at_once=0,
    )


def _optim():
    return dict(
        end_lr=1e-5,  # learning rate at the end of the cosine; the warm-up starts at rate / 10
        warmup_epochs=10.0,  # length of the warm-up of a run measured in epochs ...
        warmup_steps=0,  # ... or its length in steps; at most one of the two is above 0
        beta1=0.9,  # AdamW: decay of the first moment
        beta2=0.95,  # AdamW: decay of the second moment
        eps=1e-8,  # AdamW: added to the root of the second moment
        clip_norm=3.0,  # largest norm of a head's gradient, 0 for no clipping
    )


def _data():
    return dict(
        dataset="imagenet2012",  # see `xtra prepare --list`, or folder; several with commas
        data_dir="",  # where it lies: "" is TFDS's default; for a folder, the folder
        train_split="train",  # of all data sets, or one for each with commas
        mixture=(),  # of several data sets: the share of samples from each, () for their sizes'
        subset="",  # of the training images: 10%, stratified:10% (of each class) or list:FILE
        eval_dataset="",  # another data set to evaluate on; "" is the same one
        eval_split="validation",  # the split of the reported accuracy
        num_classes=1000,
        crop_scale=(0.08, 1.0),  # random resized crop: area, as a share of the image's
        crop_ratio=(3 / 4, 4 / 3),  # random resized crop: width over height
        flip=0.5,  # probability of a horizontal flip
        randaugment="rand-m9-mstd0.5-inc1",  # this policy, in timm's notation, or "" for none
        erasing=0.25,  # probability of one random rectangle of noise, 0 for none
        # Left open, images come in as in the encoder's own validation: resize 300 and centre crop
        # 256 for B/16, resize 256 and centre crop 224 for H/14. Mean and std are always its own.
        image_size=0,  # pixels per image side; 0 is the encoder's
        eval_resize=0,  # evaluation: pixels of the short side before the crop; 0 is the encoder's
        resize="exact",  # of crops: exact, or fast (see data/resize.py)
        num_workers=-1,  # processes that decode: -1 by cores, in 1/4 of the memory; 0 for threads
        prefetch=1,  # batches that each of them keeps ready
        bad_fraction=0.001,  # share of images that may be broken (ten are always allowed); 0: none
    )


def _cache():
    """Features that come out the same in every pass, and are computed only once."""
    return dict(
        # How large those of each split of each data set may be, or they aren't kept; 0: none are.
        max_gib=8.0,
        # The folder to keep them in; "" is features, in the working directory of the encoder's run
        # or else in the folder of the results. It is never emptied, and may be removed at any time.
        dir="",
    )
