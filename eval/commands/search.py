"""Score the subnets of a pipeline's network on held-out pictures at every noise level of its sampler, and write the
schedule of least loss within each budget of operations, beside the table, JSON and plot that it was chosen from. With
a reference, also sample with each schedule and measure the kernel distance.

examples:
  brickwork search lego-avatars-64 runs/emoji-split/held-out -o runs/search
  brickwork generate lego-avatars-64 --schedule runs/search/schedule-0.6.json
  brickwork search my-model held-out --budget 0.5 0.75 --reference train.safetensors -n 256 -o runs/search
  brickwork search my-stable-diffusion captioned --with small=my-small-one --steps 25 -o runs/switch
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from brickwork import hub, options


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Arguments of `brickwork search`."""
    options.add_common(parser, "model")
    parser.add_argument("data", help="held-out pictures, classes or captions with them: a folder, .parquet, …")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for schedules, table and plot")
    budget = "shares of the full schedule's operations (default: 0.6)"
    parser.add_argument("--budget", type=float, nargs="+", default=[0.6], metavar="SHARE", help=budget)
    options.add_networks(parser)
    options.add_common(parser, "--height", "--width", "--steps")
    parser.add_argument("--weighting", default="sampler", help="of noise levels: sampler (default), training or even")
    parser.add_argument("--p-mean", type=float, default=-1.2, help="of an EDM run's noise (default: -1.2)")
    parser.add_argument("--p-std", type=float, default=1.2, help="of an EDM run's noise (default: 1.2)")
    parser.add_argument("--pairs", type=int, default=128, help="pictures and noises at each level (default: 128)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise and of the samples (default: 0)")
    parser.add_argument("--reference", metavar="FILE", help="what `evaluate ref` wrote, to measure samples against")
    parser.add_argument("-n", "--samples", type=int, default=256, help="samples of each schedule (default: 256)")
    parser.add_argument("--random", type=int, default=0, help="random schedules to sample too, as a test of the loss")
    options.add_common(parser, "--batch-size", default=32)
    parser.add_argument("--dtype", default="float32", help="of the samples: float32 (default), bfloat16 or float16")
    options.add_common(parser, "--device", "--overwrite")
    options.add_hub(parser)
    parser.set_defaults(run=run, check=check)


def check(args: argparse.Namespace) -> None:
    """What can be told before anything is imported or loaded."""
    if options.networks_of(args) and args.reference is not None:
        raise ValueError(
            f"`--reference` is {args.reference!r}, and `--with` was given: samples are drawn of the model's own "
            "subnets alone; leave it out, and measure what `brickwork generate --with … --schedule FILE` draws with "
            "`evaluate calc`."
        )
    hub.check_argument("model")(args)


def run(args: argparse.Namespace) -> None:
    """Search, write everything and print the table."""
    from brickwork.eval.sampling.pipelines import load_any_pipeline
    from brickwork.eval.search.schedule_search import SEARCH_FORMAT, check_share, search_brick_schedule
    from brickwork.files import check_results, write_file, write_json
    from brickwork.gen.parameterization import EDMObjective, objective_of

    for budget in args.budget:
        check_share(budget)
    budgets = sorted(set(args.budget))
    files = [args.output / f"schedule-{budget:g}.json" for budget in budgets]
    others = [args.output / "search.png", *files]
    check_results(args.output / "search.json", SEARCH_FORMAT, others, overwrite=args.overwrite)
    reference = _reference(args)
    pipeline = load_any_pipeline(args.model, args.device, **options.of_hub(args))
    networks = {name: load_any_pipeline(model, args.device) for name, model in options.networks_of(args).items()}
    objective = objective_of(pipeline.scheduler)
    if isinstance(objective, EDMObjective):
        objective = EDMObjective(args.p_mean, args.p_std, objective.sigma_data)
    search = search_brick_schedule(
        pipeline,
        args.data,
        budgets[0],  # the smallest, so that one that is too small is found before anything is measured
        num_inference_steps=args.steps,
        objective=objective,
        num_pairs=args.pairs,
        networks=networks or None,
        **{name: getattr(args, name) for name in ("height", "width", "weighting", "batch_size", "seed")},
    )
    found = {f"searched {budget:g}": search.best(budget) for budget in budgets}
    search.save(args.output / "search.json", found)  # first, as it makes the others recognisable
    for file, schedule in zip(files, found.values()):
        write_json(file, schedule.to_dict())
    search.plot(args.output / "search.png", found)
    print(search.table(found))
    if reference is not None:
        found |= search.random_schedules(args.random, args.seed)
        metric = _measure_samples(args, pipeline, search, {**search.compared(), **found}, reference)
        metric["rank_correlation"] = rank_correlations(search, found, metric["values"], objective)
        listed = ", ".join(f"{name} {value:.2f}" for name, value in metric["rank_correlation"].items())
        print(f"rank correlation of loss and {metric['name']} over {len(metric['values'])} schedules: {listed}")
        write_json(args.output / "search.json", search.to_dict(found) | {"metric": metric})
        write_file(args.output / "search.png", search.panels(found, metric).png())
    print(f"wrote {args.output}: schedule-*.json (for --schedule), search.json, search.png")


def rank_correlations(search, further: Mapping, values: Mapping, objective) -> dict[str, float]:
    """Spearman's correlation between the losses of schedules, by each weighting, and their entries of a result."""
    import torch
    from torchmetrics.functional.regression import spearman_corrcoef

    from brickwork.eval.search.schedule_search import WEIGHTINGS, step_weights

    means, correlations = torch.tensor([entry["mean"] for entry in values.values()]), {}
    for weighting in WEIGHTINGS:
        scores = search.reweighted(step_weights(search.steps, objective, weighting)).scores(further)
        losses = torch.tensor([scores[name].loss for name in values])
        correlations[weighting] = float(spearman_corrcoef(losses.float(), means.float()))
    return correlations


def _reference(args: argparse.Namespace):
    """The reference, read before anything is measured; `None` if there is none."""
    from brickwork.errors import one_of
    from brickwork.eval.metrics.reference import Reference

    one_of("dtype", args.dtype, ("float32", "bfloat16", "float16"))
    if args.reference is None:
        return None
    if args.samples < 2:
        raise ValueError(f"`--samples` is {args.samples}; give at least 2 for a kernel distance.")
    reference = Reference.load(args.reference)
    reference.require_features()
    return reference


def _measure_samples(args: argparse.Namespace, pipeline, search, schedules: Mapping, reference) -> dict:
    """The kernel distance of samples of every schedule; each as a result that `brickwork report` takes.

    Sets that were sampled by an earlier, interrupted call are gone on with.
    """
    import torch

    from brickwork.eval.extractors.features import load_extractor
    from brickwork.eval.metrics.calculate import calculate
    from brickwork.eval.metrics.registry import MetricSettings
    from brickwork.eval.report.numbers import number
    from brickwork.eval.report.results import Score, metric_entry
    from brickwork.eval.sampling.pipelines import to_device
    from brickwork.eval.sampling.sample_set import SamplingSettings, sample_set
    from brickwork.files import write_json

    extractor = load_extractor(reference.info["extractor"]["name"])
    to_device(extractor.network, args.device)
    pipeline.to(getattr(torch, args.dtype))
    labels = "balanced" if pipeline.transformer.config.num_classes else "none"
    call = {"num_inference_steps": args.steps, "height": search.settings["height"], "width": search.settings["width"]}
    settings = SamplingSettings(args.samples, args.seed, labels, call=call)
    name, values = extractor.metric_name("kd"), {}
    for title, schedule in schedules.items():
        part = title.replace(" ", "-")
        pipeline.schedule = schedule
        folder = sample_set(
            pipeline, settings, args.output / "samples" / part, source=args.model, batch_size=args.batch_size
        )
        score = search.score_of(schedule)
        tags = {"share": score.share, "gflops": score.operations / 1e9, "kind": title.split()[0]}
        result = calculate([folder], reference, extractor, MetricSettings(("kd",)), name=title, tags=tags)
        result["metrics"]["paired loss"] = metric_entry([Score(score.loss, settings=search.settings)])
        write_json(args.output / "results" / f"{part}.json", result)
        values[title] = result["metrics"][name]
        print(f"{title:15} {name} {number(values[title]['mean'], values[title]['spread'])}")
    return {"name": f"{name}, {args.samples} samples", "values": values}
