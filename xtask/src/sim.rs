//! `cargo xtask sim`: the protocol under any number of fault plans, the operator's own loop under
//! others, the mutants, and the exhaustive model.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use serde_json::json;
use shadow_sim::campaign::{self, Tally};
use shadow_sim::model::{self, Exploration};
use shadow_sim::mutant::MUTANTS;
use shadow_sim::{run_logged, shop};

/// A mutant that needs more plans to be caught is as good as not caught.
const ENOUGH: u64 = 5_000;
/// Failing runs that are shown.
const SHOWN: usize = 3;

#[derive(clap::Args)]
pub struct Arguments {
    /// How many plans
    #[arg(long, default_value_t = 200_000)]
    plans: u64,
    /// How many plans for the operator's own loop
    #[arg(long, default_value_t = 2_000)]
    operator_plans: u64,
    /// The seed of the first
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let tally = campaign::plans(arguments.seed, arguments.plans);
    let seconds = begun.elapsed().as_secs_f64();
    for (end, count) in &tally.ends {
        println!("{count:>9}  {end}");
    }
    show(&tally);
    let operator = Operator::run(arguments);
    let mut caught = Vec::new();
    for mutant in MUTANTS {
        let plans = campaign::caught(mutant, ENOUGH).map(|(plans, _)| plans);
        match plans {
            Some(plans) => println!("mutant {mutant:?} caught after {plans} plans"),
            None => println!("mutant {mutant:?} survives {ENOUGH} plans"),
        }
        caught.push(json!({ "name": format!("{mutant:?}"), "caught_after_plans": plans }));
    }
    let survivors = caught.iter().filter(|mutant| mutant["caught_after_plans"].is_null()).count();
    let model = Model::explore();
    let report = json!({
        "seed": arguments.seed,
        "plans": tally.plans,
        "failures": tally.failures.len(),
        "seconds": seconds,
        "operator_plans": operator.tally.plans,
        "operator_failures": operator.tally.failures.len(),
        "operator_seconds": operator.seconds,
        "mutants": caught,
        "model_states": model.states,
        "model_seconds": model.seconds,
    });
    let path = shadow_e2e::root().join("target/sim.json");
    let text = serde_json::to_string_pretty(&report)?;
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    println!(
        "sim: {} plans from seed {} in {seconds:.1} s, {} failed; {survivors} mutants survived; {}",
        tally.plans,
        arguments.seed,
        tally.failures.len(),
        path.display()
    );
    let clean = tally.failures.is_empty() && operator.tally.failures.is_empty();
    let good = clean && survivors == 0 && model.holds;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the operator's own loop came to.
struct Operator {
    tally: shop::campaign::Tally,
    seconds: f64,
}

impl Operator {
    fn run(arguments: &Arguments) -> Self {
        let begun = Instant::now();
        let tally = shop::campaign::plans(arguments.seed, arguments.operator_plans);
        let seconds = begun.elapsed().as_secs_f64();
        for seed in tally.failures.iter().take(SHOWN) {
            let plan = shop::campaign::shrink(shop::plan::Plan::from_seed(*seed));
            let verdict = shop::run_logged(&plan);
            println!("operator, seed {seed}: {plan:#?}");
            for line in verdict.log.iter().chain(&verdict.left).chain(&verdict.violations) {
                println!("{line}");
            }
        }
        println!(
            "operator: {} plans from seed {} in {seconds:.1} s, {} failed: {:?}",
            tally.plans,
            arguments.seed,
            tally.failures.len(),
            tally.ends
        );
        Self { tally, seconds }
    }
}

/// What the exhaustive model came to.
struct Model {
    states: usize,
    seconds: f64,
    holds: bool,
}

impl Model {
    fn explore() -> Self {
        let mut whole = Self { states: 0, seconds: 0.0, holds: true };
        for bounds in model::WHOLE {
            let found = model::explore(bounds, None);
            whole.states += found.states;
            whole.seconds += found.took.as_secs_f64();
            whole.holds &= found.violated.is_empty() && found.never.is_empty();
            refute(&found);
        }
        println!("model: {} states in {:.1} s", whole.states, whole.seconds);
        whole
    }
}

fn refute(found: &Exploration) {
    for (property, events) in &found.violated {
        println!("the model violates {property:?}:");
        for event in events {
            println!("   {event}");
        }
    }
    for property in &found.never {
        println!("the model never shows {property:?}");
    }
}

fn show(tally: &Tally) {
    for failure in tally.failures.iter().take(SHOWN) {
        let scenario = campaign::shrink(failure.clone(), None);
        let verdict = run_logged(scenario.clone(), None);
        println!("seed {}: {scenario:#?}", failure.seed);
        for line in verdict.log.iter().chain(&verdict.violations) {
            println!("{line}");
        }
    }
}
