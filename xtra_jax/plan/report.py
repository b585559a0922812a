"""A plan in words and figures, for the terminal."""

from __future__ import annotations

from xtra_jax.parallel.overview import as_size
from xtra_jax.training.attention_choice import described_attention

_SHOWN_COLLECTIVES = 8


def describe(plan: dict) -> str:
    """What `xtra plan` prints of what `job.plan` returns."""
    return "\n".join(
        [
            *_heading(plan),
            "",
            *_memory(plan),
            "",
            *_collectives(plan),
            "",
            *_time(plan),
            *_largest(plan),
        ]
    )


def _heading(plan: dict) -> list[str]:
    config, topology, batch = plan["config"], plan["topology"], plan["batch"]
    axes = " x ".join(f"{size} {axis}" for axis, size in plan["mesh"].items())
    made_with = ", ".join(f"{name} {version}" for name, version in plan["versions"].items())
    at_once = f", in {config['accumulate']} microbatches" if config["accumulate"] > 1 else ""
    return [
        f"{config['name']} on {topology['name']}: {topology['chips']} {topology['chip']} ({axes})",
        f"batch {batch['global']}{at_once}: {batch['per_chip']} images at once on a chip, "
        f"{described_attention(plan['attention'])}",
        f"compiled in {plan['compile_seconds']:.0f} s with {made_with}",
    ]


def _memory(plan: dict) -> list[str]:
    memory = plan["memory"]
    available = as_size(memory["available"])
    verdict = "fits" if plan["fits"] else "DOES NOT FIT"
    if memory["required"] is None:
        return [f"memory per chip: {verdict}: more than the {available} that a program can use"]
    share = memory["required"] / memory["available"]
    lines = [
        f"memory per chip: {verdict}: {as_size(memory['required'])} of the {available} that a "
        f"program can use ({share:.0%})"
    ]
    if "arguments" in memory:
        fresh = memory["outputs"] - memory["aliased"]
        lines += [
            f"  {'state and batch':<24}{as_size(memory['arguments']):>12}",
            f"  {'activations, gradients':<24}{as_size(memory['temporaries']):>12}",
            f"  {'code and results':<24}{as_size(memory['code'] + fresh):>12}",
        ]
    else:
        lines.append("  the compiler refused it, so there is no program to read the rest from")
    return lines


def _collectives(plan: dict) -> list[str]:
    found = plan["collectives"]
    if found is None:
        return ["between chips: not known without a program"]
    if not found:
        return ["between chips: nothing"]
    lines = ["between chips, per step and chip:"]
    for one in found[:_SHOWN_COLLECTIVES]:
        among = f"{one['group_size']} chips" if one["group_size"] else "all chips"
        at_least = "" if one["count_known"] else " at least"
        lines.append(
            f"  {one['count']:>5} {one['kind']:<20}{one['dtype']:<6}over {among:<10}"
            f"{at_least} {as_size(one['bytes']):>11}, sends {as_size(one['bytes_sent']):>11}"
        )
    rest = found[_SHOWN_COLLECTIVES:]
    if rest:
        sent = as_size(sum(one["bytes_sent"] for one in rest))
        lines.append(f"  {sum(one['count'] for one in rest):>5} others, which send {sent}")
    return lines


def _time(plan: dict) -> list[str]:
    flops, step, run, peak = plan["flops"], plan["step"], plan["run"], plan["topology"]["peak"]
    recomputed = f" and {_tera(flops['recomputed'])} again" if flops["recomputed"] else ""
    traffic = plan["memory_traffic"]
    sent = sum(one["bytes_sent"] for one in plan["collectives"] or [])
    rows = {
        "compute": f"{_tera(flops['bfloat16'])} in bfloat16 at {_tera(peak['bfloat16_flops'])}/s, "
        f"{_tera(flops['float32'])} in float32 at {_tera(peak['float32_flops'])}/s",
        "memory": None
        if traffic is None
        else f"{as_size(traffic)} at {peak['memory_bandwidth'] / 1e9:.0f} GB/s",
        "interconnect": None
        if plan["collectives"] is None
        else f"{as_size(sent)} at {peak['interconnect_bandwidth'] / 1e9:.0f} GB/s",
    }
    lines = [
        f"useful work per step: {_tera(flops['useful'])}FLOP{recomputed}",
        "a step takes at least, at peak rates (a bound, not a measurement):",
    ]
    for name, what in rows.items():
        if what is None:
            lines.append(f"  {name:<14} not known without a program")
            continue
        binds = "  <- binds" if name == step["bound"] else ""
        lines.append(f"  {name:<14}{step[name]:9.4f} s  {what}{binds}")
    epochs = ""
    if run["examples"]:
        epochs = f" ({plan['config']['epochs']:g} epochs of {run['examples']:,} images)"
    lines.append(
        f"so at most {run['images_per_second']:,.0f} images/s, and at least {run['days']:.2f} days "
        f"for {run['steps']:,} steps{epochs}"
    )
    return lines


def _largest(plan: dict) -> list[str]:
    if "largest" not in plan:
        return []
    largest = plan["largest"]
    tried = ", ".join(
        f"{one['per_chip']} {'fit' if one['fits'] else 'do not'}" for one in largest["tried"]
    )
    return [
        "",
        f"largest batch that fits: {largest['per_chip']} images at once on a chip, "
        f"{largest['global']} in all (compiled: {tried})",
    ]


def _tera(number: float) -> str:
    return f"{number / 1e12:,.4g} T"
