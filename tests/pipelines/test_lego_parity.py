"""The pipeline with the Heun scheduler against runs of the LEGO authors' sampler."""

import pytest
import torch

from brickwork.pipelines.lego import LegoPipeline
from brickwork.pipelines.schedulers import edm_heun
from brickwork.pipelines.schedulers.edm_heun import EDMHeunScheduler

CASES = ["pg_heun", "pr_churn", "u_heun", "u_heun_guided", "u_churn_guided", "u_no_class"]


@pytest.mark.parametrize("case", CASES)
def test_reproduces_the_authors_sampler(case, authors_model, authors_run, monkeypatch):
    arrays, arguments = authors_run(case)
    model = authors_model(arguments["stack"])
    options = {name: arguments[name] for name in ("sigma_min", "sigma_max", "rho")}
    churn = {"s_churn": "S_churn", "s_tmin": "S_min", "s_tmax": "S_max", "s_noise": "S_noise"}
    options |= {ours: arguments[theirs] for ours, theirs in churn.items() if theirs in arguments}
    scheduler = EDMHeunScheduler(**options)
    scheduler.set_timesteps(arguments["steps"])
    # Their network is told the noise level in float32.
    torch.testing.assert_close(scheduler.sigmas[:-1], arrays["sigmas"], rtol=1e-7, atol=0)

    latents = arrays["latents"].double()
    if "noise" in arrays:
        # The scheduler folds the churn before the first step into the initial noise; undo that with their draw.
        first, raised = options["sigma_max"], scheduler.sigmas[0].item()
        churned = options.get("s_noise", 1.0) * (raised**2 - first**2) ** 0.5 * arrays["noise"][0]
        latents = (latents * first + churned) / scheduler.init_noise_sigma
        levels = scheduler.sigmas[::2]
        plain = scheduler.sigmas[1::2]
        draws = iter([noise for noise, low, high in zip(arrays["noise"][1:], plain, levels[1:]) if high > low])
        monkeypatch.setattr(edm_heun, "randn_tensor", lambda shape, generator, device, dtype: next(draws).to(dtype))

    pipe = LegoPipeline(model, scheduler)
    pipe.set_progress_bar_config(disable=True)
    labels = arrays.get("labels")
    result = pipe(
        [None] * len(latents) if labels is None else labels,
        num_inference_steps=arguments["steps"],
        guidance_scale=arguments.get("cfg_scale", 1.0),
        latents=latents,
        output_type="latent",
    ).images
    error = (result - arrays["result"]).norm() / arrays["result"].norm()
    assert error < 2e-5, error
    if "noise" in arrays:
        assert next(draws, None) is None, "every draw of the authors' must have been used"
