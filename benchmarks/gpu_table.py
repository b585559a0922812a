"""The results of the GPU benchmark as Markdown: `python -m benchmarks.gpu_table FOLDER`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

# The design's model of a step, from programs compiled ahead of time: images/s of XTRA-H/14 at batch
# 64 on an H100, by (scan, remat).
DESIGNED = {
    (True, "none"): 293,
    (True, "full"): 344,
    (True, "dots"): 370,
    (False, "dots"): 424,
    (False, "none"): 462,
}
WHOLE_DEPTH = 32
SHOWN_KERNELS = 15
GIB = 2**30


def line(result: dict) -> str:
    """One result in a few words."""
    if "error" in result:
        return f"FAILED: {result['error']}"
    told = [
        (result.get("images_per_s"), lambda x: f"{x:.1f} images/s"),
        (result.get("mfu"), lambda x: f"MFU {x:.1%}"),
        (result.get("modelled_images_per_s"), lambda x: f"modelled {x:.0f}"),
        (result.get("peak_bytes"), lambda x: f"peak {x / GIB:.1f} GiB"),
        (result.get("compile_seconds"), lambda x: f"compiled in {x:.0f} s"),
        (result.get("product_flops"), lambda x: f"{x / 1e12:.3g} TFLOP/s"),
        (result.get("copy_bytes_per_s"), lambda x: f"{x / 1e9:.4g} GB/s"),
        (result.get("busy_ms"), lambda x: f"busy {x:.2f} ms of {result['span_ms']:.2f}"),
    ]
    return ", ".join(text(value) for value, text in told if value is not None)


def variant(line: dict) -> str:
    """What is particular about a case, its model, depth and batch apart."""
    settings = line["settings"]
    told = [settings.get("attention", ""), settings.get("drop_path", "")]
    told.append("scanned" if settings.get("scan") else "unrolled" if line["kind"] == "step" else "")
    if settings.get("remat", "none") != "none":
        told.append(f"remat {settings['remat']}")
    if settings.get("predictor_dtype", "bfloat16") != "bfloat16":
        told.append(f"predictor {settings['predictor_dtype']}")
    if settings.get("reduce_dtype", "float32") != "float32":
        told.append(f"gradients {settings['reduce_dtype']}")
    if settings.get("mu_dtype", "float32") != "float32":
        told.append(f"first moments {settings['mu_dtype']}")
    if not settings.get("drop_last_block", True):
        told.append("all blocks")
    if line["kind"] == "peer":
        told.append("compiled" if settings["compiled"] else "not compiled")
    told += [settings.get("whatif", ""), line.get("flags", "")]
    return ", ".join(filter(None, told))


def table(lines: Iterable[dict]) -> str:
    """Tables of all results, those of each device apart."""
    lines = list(lines)
    return "\n".join(
        _machine(name, lines) for name in dict.fromkeys(one["machine"] for one in lines)
    )


def _machine(name: str, lines: list[dict]) -> str:
    lines = [one for one in lines if one["machine"] == name]
    good = [one for one in lines if "error" not in one]
    versions = {one.get("jax") for one in good if one.get("jax")}
    parts = [f"### {name}", "", f"jax {', '.join(sorted(versions)) or 'unknown'}.", ""]
    for one in good:
        if one["kind"] == "rates":
            parts += [f"A bfloat16 product and a copy reach {line(one)}.", ""]
    parts += _measured(good) + _extrapolated(good) + _profiles(good)
    failed = [one for one in lines if "error" in one]
    if failed:
        parts += ["Failed:", ""] + [f"- {one['case']}: {one['error']}" for one in failed] + [""]
    return "\n".join(parts)


def _rows(heads: list[str], rows: list[list[str]]) -> list[str]:
    if not rows:
        return []
    marks = ["---" if i == 0 else "---:" for i in range(len(heads))]
    return ["| " + " | ".join(row) + " |" for row in [heads, marks, *rows]] + [""]


def _number(value: float | None, text: Callable[[float], str]) -> str:
    return "" if value is None else text(value)


def _measured(lines: list[dict]) -> list[str]:
    """Every step and peer that was timed, with what was predicted beside it."""
    timed = [one for one in lines if one["kind"] in ("step", "peer")]
    best_peer = {}
    for one in timed:
        if one["kind"] == "peer":
            key = _size(one)
            best_peer[key] = max(best_peer.get(key, 0.0), one["images_per_s"])
    rows = []
    for one in timed:
        peer = best_peer.get(_size(one))
        rows.append(
            [
                f"{one['question']}: {'PyTorch, ' if one['kind'] == 'peer' else ''}{variant(one)}",
                f"{one['settings']['model']}, {one['settings']['depth'] or 'all'}",
                str(one["settings"]["batch"]),
                f"{1000 * one['seconds']:.2f}",
                f"{one['images_per_s']:.1f}",
                _number(one.get("mfu"), lambda x: f"{x:.1%}"),
                _number(one.get("modelled_images_per_s"), lambda x: f"{x:.0f}"),
                _number(one.get("bound_images_per_s"), lambda x: f"{x:.0f}"),
                _number(one.get("peak_bytes"), lambda x: f"{x / GIB:.1f}"),
                _number(one.get("program_peak_bytes"), lambda x: f"{x / GIB:.1f}"),
                _number(peer and one["images_per_s"] / peer, lambda x: f"{x:.2f}"),
            ]
        )
    heads = ["measured", "model, layers", "batch", "ms per step", "images/s", "MFU", "modelled"]
    heads += ["at peak", "peak GiB", "by the compiler", "over the best peer"]
    return _rows(heads, rows)


def _size(one: dict) -> tuple:
    return tuple(one["settings"].get(key) for key in ("model", "depth", "batch"))


def _extrapolated(lines: list[dict]) -> list[str]:
    """Pairs of shallow programs, drawn out to the whole model's depth, the fastest first."""
    groups: dict[str, dict[int, dict]] = {}
    for one in lines:
        if one["kind"] == "step" and one["settings"]["depth"]:
            rest = {key: value for key, value in one["settings"].items() if key != "depth"}
            groups.setdefault(json.dumps([rest, one["flags"]]), {})[one["settings"]["depth"]] = one
    rows = []
    for group in groups.values():
        few, more, *_ = sorted(group) if len(group) > 1 else (0, 0)
        if not more:
            continue
        shallow, deep = group[few], group[more]

        def whole(key: str, few=few, more=more, shallow=shallow, deep=deep) -> float | None:
            if shallow.get(key) is None or deep.get(key) is None:
                return None
            return shallow[key] + (deep[key] - shallow[key]) / (more - few) * (WHOLE_DEPTH - few)

        settings, batch = deep["settings"], deep["settings"]["batch"]
        rate = batch / whole("seconds")
        flops, mfu = whole("useful_flops_per_image"), None
        if deep.get("mfu"):
            peak = deep["images_per_s"] * deep["useful_flops_per_image"] / deep["mfu"]
            mfu = rate * flops / peak
        designed = None
        if settings["model"] == "h14" and batch == 64 and not settings.get("whatif"):
            designed = DESIGNED.get((settings.get("scan", False), settings.get("remat", "none")))
        seconds_modelled = None
        if deep.get("modelled_images_per_s") and shallow.get("modelled_images_per_s"):
            a, b = (batch / one["modelled_images_per_s"] for one in (shallow, deep))
            seconds_modelled = a + (b - a) / (more - few) * (WHOLE_DEPTH - few)
        rows.append(
            (
                rate,
                [
                    f"{deep['question']}: {variant(deep)}",
                    str(batch),
                    f"{1000 * (deep['seconds'] - shallow['seconds']) / (more - few):.3f}",
                    f"{rate:.1f}",
                    _number(mfu, lambda x: f"{x:.1%}"),
                    _number(seconds_modelled and batch / seconds_modelled, lambda x: f"{x:.0f}"),
                    _number(designed, str),
                    _number(whole("peak_bytes"), lambda x: f"{x / GIB:.1f}"),
                ],
            )
        )
    rows.sort(key=lambda row: -row[0])
    heads = [f"drawn out to {WHOLE_DEPTH} layers", "batch", "ms per layer", "images/s", "MFU"]
    heads += ["modelled", "design's model", "peak GiB"]
    return _rows(heads, [row for _, row in rows])


def _profiles(lines: list[dict]) -> list[str]:
    parts = []
    for one in lines:
        if one["kind"] != "profile":
            continue
        kinds = ", ".join(f"{kind} {ms:.2f}" for kind, ms in one["kinds"].items())
        parts += [
            f"Profile of {one['case'].removeprefix('profile ')}: {line(one)} per step; "
            f"milliseconds by kind: {kinds}.",
            "",
        ]
        rows = [
            [f"`{kernel['name'][:90]}`", kernel["kind"], f"{kernel['ms']:.3f}"]
            + [f"{kernel['calls']:.0f}", f"{kernel['ms'] / max(one['busy_ms'], 1e-9):.1%}"]
            for kernel in one["kernels"][:SHOWN_KERNELS]
        ]
        parts += _rows(["kernel", "kind", "ms per step", "calls", "share of busy time"], rows)
    return parts


def main() -> None:
    from benchmarks.gpu import RESULTS, read

    print(table(read(Path(sys.argv[1]) / RESULTS)))


if __name__ == "__main__":
    main()
