"""The results of the GPU benchmark as Markdown: `python -m benchmarks.gpu_table FOLDER`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.gpu_deviation import deviation, wrong

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
        (
            result.get("cudnn_is_right"),
            _verdict,
        ),
        (result.get("busy_ms"), lambda x: f"busy {x:.2f} ms of {result['span_ms']:.2f} per step"),
        (result.get("afterwards"), lambda x: f"its process failed afterwards: {x}"),
    ]
    return ", ".join(text(value) for value, text in told if value is not None)


def variant(line: dict) -> str:
    """What is particular about a case, its model, depth and batch apart."""
    settings = line["settings"]
    told = [settings.get("attention", "cudnn"), settings.get("drop_path", "bernoulli")]
    told.append("scanned" if settings.get("scan") else "unrolled")
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
        told = ["PyTorch", "compiled" if settings.get("compiled", True) else "not compiled"]
        told.append(f"{settings.get('residual', 'bfloat16')} sums")
        told.append("" if settings.get("drop_last_block", True) else "all blocks")
    told += [settings.get("whatif", ""), line.get("flags", "")]
    return ", ".join(filter(None, told))


def table(lines: Iterable[dict]) -> str:
    """Tables of all results, those of each device apart."""
    lines = list(lines)
    return "\n".join(
        _machine(name, lines) for name in dict.fromkeys(one["machine"] for one in lines)
    )


def _machine(name: str, lines: list[dict]) -> str:
    last = {one["case"]: one for one in lines if one["machine"] == name}  # of several attempts
    good = {case: one for case, one in last.items() if "error" not in one}
    versions = {one.get("jax") for one in good.values() if one.get("jax")}
    parts = [f"### {name}", "", f"jax {', '.join(sorted(versions)) or 'unknown'}.", ""]
    for one in good.values():
        if one["kind"] == "rates":
            parts += [f"A bfloat16 product and a copy reach {line(one)}.", ""]
        if one["kind"] == "attention":
            parts += [*_attention(one), ""]
    parts += _measured(good) + _extrapolated(good) + _profiles(good.values())
    failed = [one for one in last.values() if "error" in one]
    if failed:
        parts += ["Failed:", ""] + [f"- {one['case']}: {one['error']}" for one in failed] + [""]
    return "\n".join(parts)


def _attention(one: dict) -> list[str]:
    """What attention alone was found to be."""
    told = []
    for name, found in one["attention"].items():
        if "error" in found:
            told.append(f"{name}: {found['error'].rstrip('.')}")
        else:
            told.append(
                f"{name}: {1000 * found['seconds']:.3f} ms, {found['deviation']:.1e} from float32"
            )
    return [
        f"One layer's attention, both ways: {'; '.join(told)}. {_verdict(one['cudnn_is_right'])}."
    ]


def _verdict(right: bool) -> str:
    return f"cuDNN's attention is {'right' if right else 'WRONG, or not to be had'}"


def _rows(heads: list[str], rows: list[list[str]]) -> list[str]:
    if not rows:
        return []
    marks = ["---" if i == 0 else "---:" for i in range(len(heads))]
    return ["| " + " | ".join(row) + " |" for row in [heads, marks, *rows]] + [""]


def _number(value: float | None, text: Callable[[float], str]) -> str:
    return "" if value is None else text(value)


def _measured(lines: dict[str, dict]) -> list[str]:
    """Every step and peer that was timed, with what was predicted beside it."""
    timed = [one for one in lines.values() if one["kind"] in ("step", "peer")]
    best_peer, first = {}, {}
    for one in timed:
        size = _size(one)
        if one["kind"] == "peer":
            best_peer[size] = max(best_peer.get(size, 0.0), one["images_per_s"])
        else:
            first.setdefault(size, one["images_per_s"])
    rows = []
    for one in timed:
        settings, ours = one["settings"], one["kind"] == "step"
        first_one = first.get(_size(one))
        peer = best_peer.get(_size(one)) if ours else None
        rows.append(
            [
                f"{one['question']}: {variant(one)}",
                f"{settings['model']}, {settings['depth'] or 'all'}",
                str(settings["batch"]),
                f"{1000 * one['seconds']:.2f}",
                f"{one['images_per_s']:.1f}",
                _number(one.get("mfu"), lambda x: f"{x:.1%}"),
                _number(one.get("modelled_images_per_s"), lambda x: f"{x:.0f}"),
                _number(one.get("bound_images_per_s"), lambda x: f"{x:.0f}"),
                _number(one.get("peak_bytes"), lambda x: f"{x / GIB:.1f}"),
                _number(one.get("program_peak_bytes"), lambda x: f"{x / GIB:.1f}"),
                _deviation(one, lines),
                _number(first_one and one["images_per_s"] / first_one, lambda x: f"{x:.3f}"),
                _number(peer and one["images_per_s"] / peer, lambda x: f"{x:.2f}"),
            ]
        )
    heads = ["measured", "model, layers", "batch", "ms per step", "images/s", "MFU", "modelled"]
    heads += ["at peak", "peak GiB", "by the compiler", "loss, gradient off by"]
    heads += ["over the first of that depth", "over the best peer of any batch"]
    return _rows(heads, rows)


def _deviation(one: dict, lines: dict[str, dict]) -> str:
    found = deviation(one, lines)
    if found is None:
        return ""
    told = ", ".join(f"{x:.0e}" for x in found)
    return f"{told} WRONG" if wrong(one, lines) else told


def _size(one: dict) -> tuple:
    return one["settings"]["model"], one["settings"]["depth"]


def _extrapolated(lines: dict[str, dict]) -> list[str]:
    """Pairs of shallow programs, drawn out to the whole model's depth, the fastest first."""
    groups: dict[str, dict[int, dict]] = {}
    for one in lines.values():
        if one["kind"] == "step" and 0 < one["settings"]["depth"] < WHOLE_DEPTH:
            rest = {key: value for key, value in one["settings"].items() if key != "depth"}
            groups.setdefault(json.dumps([rest, one["flags"]], sort_keys=True), {})[
                one["settings"]["depth"]
            ] = one
    rows = []
    for group in groups.values():
        few, more, *_ = sorted(group) if len(group) > 1 else (0, 0)
        if not more or group[more]["seconds"] <= group[few]["seconds"]:  # all noise
            continue
        shallow, deep = group[few], group[more]

        def whole(key: str, few=few, more=more, shallow=shallow, deep=deep) -> float | None:
            if shallow.get(key) is None or deep.get(key) is None:
                return None
            return shallow[key] + (deep[key] - shallow[key]) / (more - few) * (WHOLE_DEPTH - few)

        batch = deep["settings"]["batch"]
        rate = batch / whole("seconds")
        flops, mfu = whole("useful_flops_per_image"), None
        if deep.get("mfu"):
            peak = deep["images_per_s"] * deep["useful_flops_per_image"] / deep["mfu"]
            mfu = rate * flops / peak
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
                    _number(whole("peak_bytes"), lambda x: f"{x / GIB:.1f}"),
                ],
            )
        )
    rows.sort(key=lambda row: -row[0])
    heads = [f"drawn out to {WHOLE_DEPTH} layers", "batch", "ms per layer", "images/s", "MFU"]
    heads += ["modelled", "peak GiB"]
    return _rows(heads, [row for _, row in rows])


def _profiles(lines: Iterable[dict]) -> list[str]:
    parts = []
    for one in lines:
        if "kernels" not in one:
            continue
        kinds = ", ".join(f"{kind} {ms:.2f}" for kind, ms in one["kinds"].items())
        parts += [
            f"Profile of {one['case']}, {one['trace']}: busy {one['busy_ms']:.2f} ms of "
            f"{one['span_ms']:.2f} per step; milliseconds by kind: {kinds}.",
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
