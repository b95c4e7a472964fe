//! `cargo xtask chaos`: faults on the lab, in several phases each.

use std::process::ExitCode;

use anyhow::Context as _;
use shadow_e2e::chaos::{Fault, Row, Stage, Trial, effects_of_a_move};
use shadow_e2e::scenario;

/// Options of `chaos`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only rows in whose name this occurs, as "broker" or "cut from broker for 1 s, Restoring"
    #[arg(default_value = "")]
    filter: String,
    /// Kill the operator before and after every effect of a move, in place of the table
    #[arg(long)]
    operator: bool,
    /// A few rows only, in at most ten minutes; writes target/chaos-cut.json
    #[arg(long, conflicts_with = "operator")]
    cut: bool,
    /// Also the rows that are in target/chaos.json already
    #[arg(long)]
    again: bool,
    /// Leave the images as they are: nothing has changed since the last run
    #[arg(long)]
    no_build: bool,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let lab = shadow_lab::up(2)?;
    if !arguments.no_build {
        crate::image::push_all_for_chaos(&lab)?;
    }
    let name = if arguments.cut { "target/chaos-cut.json" } else { "target/chaos.json" };
    let file = shadow_e2e::root().join(name);
    let mut rows = if arguments.cut { Vec::new() } else { before(&file)? };
    let (tried, good) = shadow_e2e::in_lab(async {
        let mut stage = Stage::open().await?;
        let trials = match () {
            () if arguments.operator => kills(&mut stage).await?,
            () if arguments.cut => Trial::cut(),
            () => Trial::all(),
        };
        println!("{HEADER}");
        let (mut tried, mut good) = (0, 0);
        for trial in trials {
            let passed = |row: &Row| row.key() == trial.key() && row.is_good();
            let known = !arguments.again && !arguments.cut && rows.iter().any(passed);
            if !title(&trial.key()).contains(&arguments.filter) || known {
                continue;
            }
            let row = attempt(&trial, &mut stage, &rows).await;
            print(&row);
            tried += 1;
            good += usize::from(row.is_good());
            rows.retain(|it| arguments.cut || it.key() != row.key());
            rows.push(row);
            scenario::write(&rows, &file)?;
        }
        anyhow::Ok((tried, good))
    })?;
    println!("{}", file.display());
    println!("chaos: {good} of {tried} as they should be");
    Ok(if good == tried { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What went wrong with the trial itself is a row as well; what the operators said is kept.
pub async fn attempt(trial: &Trial, stage: &mut Stage, rows: &[Row]) -> Row {
    let row = Box::pin(trial.run(stage, rows)).await.unwrap_or_else(|error| {
        let (fault, phase) = trial.key();
        Row { fault, phase, verdict: format!("{error:#}"), ..Row::default() }
    });
    if !row.is_good() {
        let name = title(&row.key()).replace([' ', '/', '\''], "-");
        let file = shadow_e2e::root().join(format!("target/chaos/{name}.log"));
        let words = stage.operators_words().await;
        let written = file.parent().map_or(Ok(()), std::fs::create_dir_all);
        if let Err(error) = written.and_then(|()| std::fs::write(&file, words)) {
            eprintln!("{}: {error}", file.display());
        }
        stage.spoil();
    }
    row
}

async fn kills(stage: &mut Stage) -> anyhow::Result<Vec<Trial>> {
    let effects = effects_of_a_move(stage).await?;
    let trial = |at: String| Trial::of(Fault::OperatorKilled(at), Some("Pending"));
    let sides = ["before", "after"];
    Ok(effects.iter().flat_map(|at| sides.map(|side| trial(format!("{side} {at}")))).collect())
}

fn before(file: &std::path::Path) -> anyhow::Result<Vec<Row>> {
    match std::fs::read(file) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| file.display().to_string()),
        Err(_) => Ok(Vec::new()),
    }
}

fn title((fault, phase): &(String, Option<String>)) -> String {
    format!("{fault}, {}", phase.as_deref().unwrap_or("control"))
}

pub const HEADER: &str = "fault                                     phase          outcome    total_s  pause_ms  lost   dup  \
                      reord  redel  probes  verdict";

pub fn print(row: &Row) {
    println!(
        "{:<42}{:<15}{:<10}{:>8.1}{:>10}{:>6}{:>6}{:>7}{:>7}{:>8}  {}",
        row.fault,
        row.phase.as_deref().unwrap_or("control"),
        row.outcome,
        row.seconds,
        row.pause_ms,
        row.lost,
        row.duplicated,
        row.reordered,
        row.redelivered,
        row.failed_probes,
        row.verdict
    );
    if !row.message.is_empty() && row.outcome == "Failed" {
        println!("    {}", row.message);
    }
    if !row.leftovers.is_empty() {
        println!("    left: {}", row.leftovers.join(", "));
    }
}
