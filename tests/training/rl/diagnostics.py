"""What every good run of reinforcement learning logs, at every step."""

from __future__ import annotations

REWARDS = (
    "imitation", "collision", "off_road", "time_to_collision", "progress", "comfort", "speed_limit", "red_light",
    "agreement", "format",
)  # fmt: skip
"""The parts of the recipe's reward."""

DIAGNOSTICS = {
    "rewards": "reward/mean reward/over_kinds reward/std reward/errors rl/kept rl/without_spread rl/all_succeed "
    "rl/all_fail rl/rounds rl/discarded rl/discarded/all_succeed rl/discarded/no_spread rl/discarded/overlong "
    "rl/discarded/repeated rl/filled " + " ".join(f"reward/{name} reward/{name}_std" for name in REWARDS),
    "policy": "policy/entropy policy/clip_low_share policy/clip_high_share policy/dual_clip_share "
    "policy/approximate_kl policy/ratio_min policy/ratio_max gradient_norm policy/advantage_mean "
    "policy/advantage_min policy/advantage_max",
    "lengths": "answers/length answers/length_max answers/cut",
    "mismatch": "policy/engine_error policy/engine_error_max policy/engine_kl policy/engine_weight_mean "
    "policy/engine_weight_max policy/engine_ess policy/engine_outside_share",
    "system": "answers/weight_version time/sync_s time/generate_s time/judge_s time/update_s tokens_per_s "
    "throughput/mfu",
    "driving": "answers/unparsed driving/ade_m driving/comfort driving/collision driving/at_fault_collision "
    "driving/off_road",
}
