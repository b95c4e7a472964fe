//! `cargo xtask bench`: figures that are measured side by side in one run, and never asserted.

use std::process::ExitCode;

use clap::Subcommand;
use shadow_e2e::bench::{self, Row, Way};
use shadow_e2e::cluster::Cluster;
use shadow_e2e::scenario;

/// What is measured.
#[derive(Subcommand)]
pub enum Bench {
    /// Carrying a checkpoint from node to node, in every way; writes target/bench/transfer.json
    Transfer(Arguments),
}

/// Options of `bench transfer`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Moves per size and way
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    times: u8,
    /// Megabytes that the consumer carries beside its own 15
    #[arg(long, value_delimiter = ',', default_values_t = [0, 240, 1000])]
    ballast_mb: Vec<u32>,
    /// Leave the images as they are: nothing has changed since the last run
    #[arg(long)]
    no_build: bool,
}

pub fn run(what: &Bench) -> anyhow::Result<ExitCode> {
    let Bench::Transfer(arguments) = what;
    let lab = shadow_lab::up(2)?;
    if !arguments.no_build {
        crate::image::push_all(&lab)?;
    }
    let file = shadow_e2e::root().join("target/bench/transfer.json");
    shadow_e2e::in_lab(async {
        let cluster = Cluster::connect().await?;
        cluster.install_operator().await?;
        println!(
            "{:>9}  {:<16}{:>12}{:>12}{:>10}  written, peak memory (MB)",
            "archive", "way", "transfer_ms", "restore_ms", "whole_ms"
        );
        let mut rows = Vec::new();
        for ballast_mb in &arguments.ballast_mb {
            for way in Way::ALL {
                let times = arguments.times.into();
                let row = Box::pin(bench::run(&cluster, way, *ballast_mb, times)).await?;
                print(&row);
                rows.push(row);
                // Each as it comes: the whole takes a while.
                scenario::write(&rows, &file)?;
            }
        }
        anyhow::Ok(())
    })?;
    println!("{}", file.display());
    Ok(ExitCode::SUCCESS)
}

fn print(row: &Row) {
    let it = &row.median;
    let mb = |bytes: &u64| bytes / 1_000_000;
    let all = |of: &std::collections::BTreeMap<String, u64>| {
        let each: Vec<String> = of.iter().map(|(who, n)| format!("{who} {}", mb(n))).collect();
        each.join(", ")
    };
    println!(
        "{:>6} MB  {:<16}{:>12}{:>12}{:>10}  {}; {}",
        mb(&it.archive_bytes),
        format!("{:?}", row.way),
        it.transfer_ms,
        it.restore_ms,
        it.whole_ms,
        all(&it.written),
        all(&it.peak_memory)
    );
}
