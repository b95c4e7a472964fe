//! `cargo xtask e2e`: tables of moves on the lab, one row per case.

use std::process::ExitCode;

use clap::ValueEnum;
use shadow_e2e::cases::{self, Case, Row};
use shadow_e2e::cluster::Cluster;
use shadow_e2e::scenario;

/// Which table.
#[derive(Clone, Copy, ValueEnum)]
enum Table {
    /// Kinds of workloads, and who the pod is afterwards
    Identity,
    /// Ways to hand over, kinds of queues and exchanges
    Modes,
    /// From node to node, without a registry
    Direct,
}

#[derive(clap::Args)]
pub struct Arguments {
    /// Which table
    table: Table,
    /// How many moves per case, there and back; times are their medians
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    times: u8,
    /// Only cases whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Leave the images as they are: nothing has changed since the last run
    #[arg(long)]
    no_build: bool,
}

impl Table {
    fn name(self) -> &'static str {
        match self {
            Table::Identity => "identity",
            Table::Modes => "modes",
            Table::Direct => "direct",
        }
    }

    fn cases(self) -> Vec<Case> {
        match self {
            Table::Identity => cases::identity(),
            Table::Modes => cases::modes(),
            Table::Direct => cases::direct(),
        }
    }
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let lab = shadow_lab::up(2)?;
    if !arguments.no_build {
        crate::image::push_all(&lab)?;
    }
    let rows = shadow_e2e::in_lab(async {
        let cluster = Cluster::connect().await?;
        cluster.install_operator().await?;
        println!("{HEADER}");
        let mut rows = Vec::new();
        for case in arguments.table.cases() {
            if case.name.contains(&arguments.only) {
                let row = Box::pin(case.run(&cluster, arguments.times.into())).await?;
                print(&row);
                rows.push(row);
            }
        }
        anyhow::Ok(rows)
    })?;
    let name = arguments.table.name();
    let file = shadow_e2e::root().join(format!("target/e2e/{name}.json"));
    scenario::write(&rows, &file)?;
    println!("{}", file.display());
    let good = rows.iter().all(Row::is_good);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

const HEADER: &str = "case                                        times  total_s  downtime_ms  pause_ms  lost  \
                      dup  reord  result";

fn print(row: &Row) {
    println!(
        "{:<44}{:>5}{:>9.2}{:>13}{:>10}{:>6}{:>5}{:>7}  {}",
        row.case,
        row.times,
        row.total_s,
        row.downtime_ms,
        row.pause_ms,
        row.lost,
        row.duplicated,
        row.reordered,
        row.result
    );
    if !row.leftovers.is_empty() {
        println!("  left: {}", row.leftovers.join(", "));
    }
}
