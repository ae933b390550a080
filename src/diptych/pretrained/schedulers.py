"""What becomes of a saved scheduler: diffusers' classes and their settings, each followed, without effect, or refused.

A setting is refused where it is used: by the class that is saved, where no sampler is asked for, or by the class of the
sampler that is. How a sampler steps is what its name says, whatever is saved; what it takes over is the noise, the
prediction and the times.

This is the one table of it; `scheduler_page` writes it into the documentation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diptych.core.errors import UserError


class SchedulerKind(NamedTuple):
    """A class of schedulers."""

    sampler: str
    """Ours of the same name, or the nearest."""
    same: bool = True
    """Whether it is the same sampler; else ours stands in for it."""
    betas: tuple[str, float, float] = ("linear", 0.0001, 0.02)
    """beta_schedule, beta_start and beta_end where nothing is said."""


SD_BETAS = ("linear", 0.00085, 0.012)
CLASSES = {
    "DDIMScheduler": SchedulerKind("ddim"),
    "DDIMParallelScheduler": SchedulerKind("ddim"),
    "DDPMScheduler": SchedulerKind("ddpm"),
    "DDPMParallelScheduler": SchedulerKind("ddpm"),
    "DEISMultistepScheduler": SchedulerKind("dpmpp-2m", same=False),
    "DPMSolverMultistepScheduler": SchedulerKind("dpmpp-2m"),
    "DPMSolverSDEScheduler": SchedulerKind("dpmpp-2m-sde", same=False, betas=SD_BETAS),
    "DPMSolverSinglestepScheduler": SchedulerKind("dpmpp-2m", same=False),
    "EulerAncestralDiscreteScheduler": SchedulerKind("euler-ancestral"),
    "EulerDiscreteScheduler": SchedulerKind("euler"),
    "HeunDiscreteScheduler": SchedulerKind("heun", betas=SD_BETAS),
    "KDPM2AncestralDiscreteScheduler": SchedulerKind("euler-ancestral", same=False, betas=SD_BETAS),
    "KDPM2DiscreteScheduler": SchedulerKind("heun", same=False, betas=SD_BETAS),
    "LCMScheduler": SchedulerKind("lcm", betas=("scaled_linear", 0.00085, 0.012)),
    "LMSDiscreteScheduler": SchedulerKind("euler", same=False),
    "PNDMScheduler": SchedulerKind("ddim", same=False),
    "SASolverScheduler": SchedulerKind("dpmpp-2m-sde", same=False),
    "TCDScheduler": SchedulerKind("ddim", same=False, betas=("scaled_linear", 0.00085, 0.012)),
    "UniPCMultistepScheduler": SchedulerKind("unipc"),
}
"""Class -> what samples in its place."""
OTHERS = ("EDM", "FlowMatch", "Consistency", "CMStochastic", "ScoreSde", "Karras")
"""In the names of classes that are of other families, whatever betas a file names."""

BETAS = {"linear": "linear", "scaled_linear": "scaled-linear", "squaredcos_cap_v2": "cosine-table"}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
DPM, UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
DDIM, DDPM, EULER = "DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler"
SOLVERS = ("DEISMultistepScheduler", DPM, "DPMSolverSinglestepScheduler", "SASolverScheduler", UNIPC)
"""Those that know flow matching too."""
CURVED = (EULER, "HeunDiscreteScheduler", "LMSDiscreteScheduler", "KDPM2DiscreteScheduler")
CURVED += ("KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler", *SOLVERS)
"""Those that follow curves of sigmas."""
CLIPPING = (DDIM, "DDIMParallelScheduler", DDPM, "DDPMParallelScheduler")
"""Those that clip the estimate by default."""
LCM = ("LCMScheduler", "TCDScheduler")
THRESHOLDING = (*CLIPPING, *LCM, *SOLVERS)
"""Those that can bound it dynamically."""

SAVED: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": (DDIM, {}),
    "ddpm": (DDPM, {}),
    "ddpm-fixed-large": (DDPM, {"variance_type": "fixed_large"}),
    "dpm-2m": (DPM, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    "dpm-2m-sde": (DPM, {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}),
    "dpmpp-1m": (DPM, {"algorithm_type": "dpmsolver++", "solver_order": 1}),
    "dpmpp-1m-sde": (DPM, {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}),
    "dpmpp-2m": (DPM, {"algorithm_type": "dpmsolver++"}),
    "dpmpp-2m-heun": (DPM, {"algorithm_type": "dpmsolver++", "solver_type": "heun"}),
    "dpmpp-2m-sde": (DPM, {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp-2m-sde-heun": (DPM, {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}),
    "dpmpp-3m": (DPM, {"algorithm_type": "dpmsolver++", "solver_order": 3}),
    "euler": (EULER, {}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "unipc": (UNIPC, {}),
    "unipc-bh1": (UNIPC, {"solver_type": "bh1"}),
}
"""Sampler -> the class under which it is saved, and the settings that make it this variant."""


class Setting(NamedTuple):
    """One setting of saved schedulers."""

    treatment: str
    """followed, without effect, or refused."""
    allowed: tuple[Any, ...] | None
    """The values that are taken, of what is refused those that change nothing; any other is refused by name. None for
    what is followed whatever it says, or never matters."""
    note: str
    readers: tuple[str, ...] = ()
    """The classes that read it: said in the file of another it does no harm. All if none."""
    named: bool = False
    """Whether it is a matter of how a sampler steps, which its name says where one is asked for."""

    def takes(self, value: Any) -> bool:
        return self.allowed is None or value in self.allowed


SWITCH = (True, False)
NOTHING = (False, 0, "", [], {})
"""Values of an unknown setting that mean nothing; null is another."""
SETTINGS = {
    "num_train_timesteps": Setting("followed", None, "the number of discrete steps"),
    "beta_schedule": Setting("followed", tuple(BETAS), "the betas"),
    "beta_start": Setting("followed", None, "the first beta"),
    "beta_end": Setting("followed", None, "the last beta"),
    "trained_betas": Setting("refused", (None,), "betas one by one"),
    "rescale_betas_zero_snr": Setting("followed", SWITCH, "the last alpha² becomes 2⁻²⁴"),
    "prediction_type": Setting("followed", tuple(PREDICTIONS), "what the U-Net predicts"),
    "timestep_spacing": Setting(
        "followed", ("leading", "linspace", "trailing"), "for every sampler; unsaid, each has its own class's"
    ),
    "steps_offset": Setting("followed", None, "of `leading`, 0 or 1; always 1 for Stable Diffusion, as in pipelines"),
    "set_alpha_to_one": Setting("followed", SWITCH, "where `ddim` ends"),
    "final_sigmas_type": Setting("followed", ("zero", "sigma_min"), "where all but `ddim`, `ddpm` and `heun` end"),
    "use_karras_sigmas": Setting(
        "followed", SWITCH, "by `euler`, `heun`, the DPM solvers and `unipc`, one of the four at a time", CURVED
    ),
    "use_exponential_sigmas": Setting("followed", SWITCH, "likewise", CURVED),
    "use_beta_sigmas": Setting("followed", SWITCH, "likewise", CURVED),
    "use_lu_lambdas": Setting("followed", SWITCH, "by the DPM solvers", (DPM,)),
    "sigma_min": Setting("followed", None, "the lower end of those curves"),
    "sigma_max": Setting("followed", None, "the upper end of those curves"),
    "lambda_min_clipped": Setting("followed", None, "by the DPM solvers; not with `trailing`", SOLVERS[1:4]),
    "algorithm_type": Setting(
        "followed",
        ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver", "deis"),
        "`dpmpp-2m`, `dpmpp-2m-sde`, `dpm-2m` or `dpm-2m-sde`; `deis` means `dpmsolver++` there too",
        (DPM,),
        named=True,
    ),
    "solver_order": Setting(
        "followed",
        (1, 2, 3),
        "1 is `dpmpp-1m`, 3 is `dpmpp-3m`, of the ODE alone; 2 for `unipc`",
        (DPM, UNIPC),
        named=True,
    ),
    "solver_type": Setting(
        "followed",
        ("midpoint", "heun", "logrho", "bh1", "bh2"),
        "`heun` is `dpmpp-2m-heun` or `dpmpp-2m-sde-heun`, `bh1` is `unipc-bh1`; the words of other classes mean the "
        "default",
        (DPM, UNIPC),
        named=True,
    ),
    "variance_type": Setting(
        "followed",
        ("fixed_small", "fixed_small_log", "fixed_large", "learned_range", None),
        "`fixed_large` is `ddpm-fixed-large`; `learned_range` is for DeepFloyd IF alone, and needed there",
        (DDPM, "DDPMParallelScheduler"),
        named=True,
    ),
    "clip_sample": Setting("followed", SWITCH, "for DeepFloyd IF; Stable Diffusion never clips, as in pipelines"),
    "clip_sample_range": Setting("without effect", None, "where DeepFloyd IF is clipped it must be 1"),
    "thresholding": Setting("followed", SWITCH, "for DeepFloyd IF; refused for latents", THRESHOLDING),
    "dynamic_thresholding_ratio": Setting("followed", None, "where `thresholding` is"),
    "sample_max_value": Setting("followed", None, "where `thresholding` is"),
    "lower_order_final": Setting(
        "followed", SWITCH, "false is refused where it would change a step", (DPM, UNIPC), named=True
    ),
    "euler_at_final": Setting("followed", SWITCH, "true is refused where it would change a step", (DPM,), named=True),
    "interpolation_type": Setting(
        "refused", ("linear",), "log_linear: times and sigmas that do not belong together", (EULER,)
    ),
    "timestep_type": Setting("refused", ("discrete",), "EDM's times", (EULER,)),
    "predict_x0": Setting("refused", (True,), "UniPC of the noise", (UNIPC,), named=True),
    "disable_corrector": Setting("refused", ([],), "UniP at some steps", (UNIPC,), named=True),
    "solver_p": Setting("refused", (None,), "another predictor", (UNIPC,), named=True),
    "use_flow_sigmas": Setting("refused", (False,), "flow matching", SOLVERS),
    "shift_terminal": Setting("without effect", None, "of flow matching alone"),
    "flow_shift": Setting("without effect", None, "of flow matching alone"),
    "use_dynamic_shifting": Setting("without effect", None, "of flow matching alone"),
    "time_shift_type": Setting("without effect", None, "of flow matching alone"),
    "skip_prk_steps": Setting("without effect", None, "PNDM's first steps, for which `ddim` stands in"),
    "original_inference_steps": Setting("refused", (50,), "the times of LCM; TCD has a stand-in", LCM),
    "timestep_scaling": Setting("refused", (10.0,), "of LCM, likewise", LCM),
    "predictor_order": Setting("without effect", None, "of SA-Solver, likewise"),
    "corrector_order": Setting("without effect", None, "of SA-Solver, likewise"),
    "tau_func": Setting("without effect", None, "of SA-Solver, likewise"),
    "noise_sampler_seed": Setting("without effect", None, "of DPM-Solver SDE, likewise"),
}
"""Setting -> what becomes of it. One that is not here is refused unless it says nothing: null, false or empty."""


def stated_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a saved config says: its settings but those that were there by default when it was made, which another
    class does not take over either (`_use_default_values`), and null where null is no value of its own."""
    defaults = values.get("_use_default_values")
    defaults = defaults if isinstance(defaults, list) else []
    stated = {field: value for field, value in values.items() if not field.startswith("_") and field not in defaults}
    return {field: value for field, value in stated.items() if value is not None}


def kind_of(values: Mapping[str, Any], where: str) -> SchedulerKind:
    """What samples in the place of a saved scheduler's class; a `UserError` for one of another family.

    Of a class that is not among them, whose betas are said all the same, nothing is known but those.
    """
    name = values.get("_class_name")
    if isinstance(name, str) and name in CLASSES:
        return CLASSES[name]
    if (
        isinstance(name, str)
        and "beta_schedule" in stated_settings(values)
        and not any(word in name for word in OTHERS)
    ):
        return SchedulerKind("ddim", same=False)
    raise unsupported_value(where, "_class_name", name, sorted(CLASSES))


def check(values: Mapping[str, Any], where: str) -> None:
    """Raise a `UserError` that names the first setting that every class reads and whose value cannot be followed."""
    for field, value in stated_settings(values).items():
        setting = SETTINGS.get(field)
        if setting is not None and not setting.readers and not setting.takes(value):
            raise unsupported_value(where, field, value, setting.allowed)


def refusals(values: Mapping[str, Any], where: str, latent: bool) -> dict[str, str]:
    """Sampler -> why it cannot be had as the saved scheduler asks, of those that cannot; under "" that of none asked
    for."""
    name, reasons, where = values["_class_name"], {}, Path(where).name  # is kept with the model, wherever that goes
    try:
        if name not in CLASSES:
            raise unsupported_value(where, "_class_name", name, sorted(CLASSES))
        require_read(values, name, where, latent)
        sampler_of(values, where)
    except UserError as error:
        reasons[""] = str(error)
    for sampler, (theirs, _) in SAVED.items():
        try:
            require_read(values, theirs, where, latent, chosen=True)
        except UserError as error:
            reasons[sampler] = str(error)
    return reasons


def require_read(values: Mapping[str, Any], name: str, where: str, latent: bool, chosen: bool = False) -> None:
    """Raise a `UserError` that names the first setting that a class would read, of any other's file too, and that
    cannot be followed. `chosen` leaves out what the name of a sampler says."""
    stated = stated_settings(values)
    for field, value in stated.items():
        if (setting := SETTINGS.get(field)) is None:
            if value not in NOTHING and name == values["_class_name"]:
                raise UserError(f"{where}: diptych does not know the setting {field} = {value!r}")
        elif name in setting.readers and not (chosen and setting.named):
            if not setting.takes(value):
                raise unsupported_value(where, field, value, setting.allowed)
            if field == "thresholding" and latent:
                require_value(stated, field, False, where)
            low = lowest(stated, where) if field == "lambda_min_clipped" else None
            if low is not None and stated.get("timestep_spacing") == "trailing":
                raise UserError(f"{where}: diptych has no lambda_min_clipped with timestep_spacing trailing")
    if len(curves := [field for field in CURVES if stated.get(field) and name in SETTINGS[field].readers]) > 1:
        raise UserError(f"{where}: only one of {' and '.join(curves)} can be true")


def sampler_of(values: Mapping[str, Any], where: str) -> str:
    """Our sampler for a saved scheduler, its variant chosen by the settings; a `UserError` names one that we lack."""
    name, stated = values["_class_name"], stated_settings(values)
    sampler = kind_of(values, where).sampler
    if name == DPM:
        sampler = dpm_solver(stated, where)
    elif name == UNIPC:
        require_value(stated, "solver_order", 2, where)
        require_value(stated, "lower_order_final", True, where)
        sampler = "unipc-bh1" if stated.get("solver_type") == "bh1" else "unipc"
    elif sampler == "ddpm" and stated.get("variance_type") == "fixed_large":
        sampler = "ddpm-fixed-large"
    return sampler


def dpm_solver(stated: Mapping[str, Any], where: str) -> str:
    """The variant of the DPM solvers."""
    algorithm, order = stated.get("algorithm_type", "dpmsolver++"), stated.get("solver_order", 2)
    stochastic, noise = algorithm.startswith("sde-"), algorithm.removeprefix("sde-") == "dpmsolver"
    heun = stated.get("solver_type") == "heun"
    if order == 1:  # of the ODE it is the same step for both, and of no rule
        if noise and stochastic:
            raise unsupported_value(where, "solver_order", 1, (2,))
        return "dpmpp-1m-sde" if stochastic else "dpmpp-1m"
    if order == 3 or stated.get("final_sigmas_type") == "sigma_min":  # else the last step is the first order's anyway
        require_value(stated, "lower_order_final", True, where)
        require_value(stated, "euler_at_final", False, where)
    if order == 3 and (noise or stochastic):
        raise unsupported_value(where, "solver_order", 3, (1, 2))
    if heun and (noise or order == 3):
        raise unsupported_value(where, "solver_type", "heun", ("midpoint",))
    if noise:
        return "dpm-2m-sde" if stochastic else "dpm-2m"
    if order == 3:
        return "dpmpp-3m"
    return ("dpmpp-2m-sde" if stochastic else "dpmpp-2m") + ("-heun" if heun else "")


def schedule_values(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a `ScheduleConfig`."""
    stated, usual = stated_settings(values), CLASSES.get(values.get("_class_name", ""), SchedulerKind("")).betas
    kind = stated.get("beta_schedule", usual[0])
    if kind not in tuple(BETAS):
        raise unsupported_value(where, "beta_schedule", kind, BETAS)
    return {
        "kind": BETAS[kind],
        "steps": stated.get("num_train_timesteps", 1000),
        "beta_start": stated.get("beta_start", usual[1]),
        "beta_end": stated.get("beta_end", usual[2]),
        "zero_snr": stated.get("rescale_betas_zero_snr", False),
    }


CURVES = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
    "use_lu_lambdas": "lu",
}


def times_values(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a `TimesConfig`. What is not said is each sampler's own, also of one that takes another's place."""
    stated = stated_settings(values)
    curves = [field for field in CURVES if stated.get(field)]  # more than one are refused where they are read
    return {
        "spacing": stated.get("timestep_spacing", "published"),
        "offset": stated.get("steps_offset", 0),
        "final": "clean" if stated.get("set_alpha_to_one", True) else "first",
        "final_sigma": "least" if stated.get("final_sigmas_type") == "sigma_min" else "zero",
        "sigmas": CURVES[curves[0]] if curves else "own",
        "sigma_min": stated.get("sigma_min"),
        "sigma_max": stated.get("sigma_max"),
        "lambda_min": lowest(stated, where),
    }


def lowest(stated: Mapping[str, Any], where: str) -> float | None:
    """lambda_min_clipped, where it says anything."""
    value = stated.get("lambda_min_clipped", -math.inf)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{where}: lambda_min_clipped must be a number, not {value!r}")
    return None if value == -math.inf else float(value)


def prediction_of(values: Mapping[str, Any], where: str) -> str:
    """What the network predicts, in our word."""
    name = stated_settings(values).get("prediction_type", "epsilon")
    if name not in tuple(PREDICTIONS):
        raise unsupported_value(where, "prediction_type", name, PREDICTIONS)
    return PREDICTIONS[name]


def require_value(stated: Mapping[str, Any], field: str, value: Any, where: str) -> None:
    """Raise a `UserError` unless a setting has this value, which is its default."""
    if stated.get(field, value) != value:
        raise unsupported_value(where, field, stated[field], (value,))


def unsupported_value(where: str, field: str, value: Any, supported: Any) -> UserError:
    return UserError(f"{where}: {field} {value!r} is none of {', '.join(str(one) for one in supported)}")
