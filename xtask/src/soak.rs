//! `cargo xtask soak`: many migrations in a row on the lab.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use shadow_e2e::chaos::{Row, Soak, Spell, Stage};
use shadow_e2e::scenario;

use crate::chaos::{HEADER, attempt, print};

/// After so many the operator's memory is what it is compared with.
const WARM: usize = 10;

/// Options of `soak`.
#[derive(clap::Args)]
pub struct Arguments {
    /// How many
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    migrations: u64,
    /// All of them follow from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Begin with the first one again; else it goes on where target/soak.json ends
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
    let file = shadow_e2e::root().join("target/soak.json");
    let soak = Soak { seed: arguments.seed, migrations: arguments.migrations };
    let mut spell = if arguments.again { fresh(soak) } else { before(&file, soak)? };
    shadow_e2e::in_lab(async {
        let mut stage = Stage::open().await?;
        println!("  nr {HEADER}");
        for nth in spell.rows.len() as u64..soak.migrations {
            let trial = soak.trial(nth);
            let row = attempt(&trial, &mut stage, &[]).await;
            print!("{nth:>4} ");
            print(&row);
            println!("     {:?} {}", trial.kind, trial.asked);
            spell.rows.push(row);
            if spell.rows.len() == WARM {
                spell.memory_after_ten = Some(stage.memory().await?);
            }
            scenario::write(&spell, &file)?;
        }
        spell.memory_in_the_end = Some(stage.memory().await?);
        scenario::write(&spell, &file)
    })?;
    println!("{}", file.display());
    Ok(summary(&spell))
}

fn fresh(soak: Soak) -> Spell {
    Spell { soak, rows: Vec::new(), memory_after_ten: None, memory_in_the_end: None }
}

/// The one that was begun, if it is the same.
fn before(file: &Path, soak: Soak) -> anyhow::Result<Spell> {
    let Ok(text) = std::fs::read(file) else { return Ok(fresh(soak)) };
    let found: Spell = serde_json::from_slice(&text).with_context(|| file.display().to_string())?;
    let same = found.soak.seed == soak.seed;
    Ok(if same { Spell { soak, ..found } } else { fresh(soak) })
}

fn summary(spell: &Spell) -> ExitCode {
    let sum = |of: fn(&Row) -> u64| spell.rows.iter().map(of).sum::<u64>();
    let count = |of: fn(&&Row) -> bool| spell.rows.iter().filter(of).count();
    let good = count(|row| row.is_good());
    println!(
        "{} of {} as they should be: {} Completed, {} rolled back; {} lost, {} duplicated, {} reordered, \
         {} left over; {} delivered again by a broker that had not heard of them",
        good,
        spell.soak.migrations,
        count(|row| row.outcome == "Completed"),
        count(|row| row.outcome != "Completed"),
        sum(|row| row.lost),
        sum(|row| row.duplicated.saturating_sub(row.again)),
        sum(|row| row.reordered),
        sum(|row| row.leftovers.len() as u64),
        sum(|row| row.again),
    );
    let bytes = |measured: Option<u64>| measured.unwrap_or_default();
    let (ten, end) = (bytes(spell.memory_after_ten), bytes(spell.memory_in_the_end));
    let mb = |bytes: u64| format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10);
    println!("operator's memory: {} after ten, {} in the end", mb(ten), mb(end));
    let steady = spell.rows.len() <= WARM || end <= ten + ten / 10;
    let whole = good as u64 == spell.soak.migrations;
    if whole && steady { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
