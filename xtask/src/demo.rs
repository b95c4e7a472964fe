//! `cargo xtask demo`: a live consumer moves between two real nodes while messages keep coming.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use shadow_e2e::cluster::Cluster;
use shadow_e2e::migrate;
use shadow_e2e::report::Report;
use shadow_e2e::scenario;
use shadow_e2e::workload::{Language, Workload};

/// The demo's variables, from the environment: `make demo RATE=150`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Remove all that the demo made: workload, operator, lab
    #[arg(long)]
    down: bool,
    /// Messages per second
    #[arg(long, env = "RATE", default_value_t = 60)]
    rate: u32,
    /// Publishers, each with a connection of its own
    #[arg(long, env = "PUBLISHERS", default_value_t = 4)]
    publishers: u32,
    /// Megabytes of memory that the consumer carries
    #[arg(long, env = "BALLAST_MB", default_value_t = 0)]
    ballast_mb: u32,
    /// Which consumer
    #[arg(long, env = "CONSUMER", default_value = "python", value_parser = ["python", "rust"])]
    consumer: String,
    /// 1: the consumer declares and binds its queue on every connect
    #[arg(long, env = "REBIND", default_value = "0")]
    rebind: String,
    /// How many times, each from a fresh workload
    #[arg(long, env = "TIMES", default_value_t = 1)]
    times: u32,
    /// Leave the images as they are: nothing has changed since the last run
    #[arg(long)]
    no_build: bool,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if arguments.down {
        shadow_lab::down()?;
        return Ok(ExitCode::SUCCESS);
    }
    let lab = shadow_lab::up(2)?;
    if !arguments.no_build {
        crate::image::push_all(&lab)?;
    }
    let reports = shadow_e2e::in_lab(async {
        let cluster = Cluster::connect().await?;
        cluster.install_operator().await?;
        let mut reports = Vec::new();
        for _ in 0..arguments.times {
            reports.push(once(&cluster, &workload(arguments)).await?);
        }
        anyhow::Ok(reports)
    })?;
    let folder = shadow_e2e::root().join("target/demo");
    let last = reports.last().context("no run")?;
    scenario::write(last, &folder.join("report.json"))?;
    scenario::write(&reports, &folder.join("reports.json"))?;
    println!("{}", folder.join("report.json").display());
    summary(&reports);
    let clean = reports.iter().all(Report::is_clean);
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn workload(arguments: &Arguments) -> Workload {
    Workload {
        rate: arguments.rate,
        publishers: arguments.publishers,
        consumer: if arguments.consumer == "rust" { Language::Rust } else { Language::Python },
        rebind: arguments.rebind == "1",
        ballast_mb: arguments.ballast_mb,
        ..Workload::default()
    }
}

async fn once(cluster: &Cluster, workload: &Workload) -> anyhow::Result<Report> {
    migrate::delete_all(cluster).await?;
    Workload::remove(cluster).await?;
    workload.deploy(cluster).await?;
    // Some history to carry along, and statistics at the broker.
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    scenario::reset_probe(cluster).await?;
    let begun = Instant::now();
    let bar = ProgressBar::new_spinner()
        .with_style(ProgressStyle::with_template("{spinner} {elapsed:>4} {msg}")?);
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    let mut shown = String::new();
    let moved = scenario::move_consumer(cluster, None, |object| {
        let status = object.status.clone().unwrap_or_default();
        let phase = status.phase.unwrap_or_default();
        let lag = status.handoff.and_then(|handoff| handoff.lag).unwrap_or(0);
        let message = status.message.unwrap_or_default();
        bar.set_message(format!("{phase}, lag {lag}: {message}"));
        if phase != shown {
            bar.println(format!("{:>7.2} s  {phase}", begun.elapsed().as_secs_f64()));
            shown = phase;
        }
    })
    .await;
    bar.finish_and_clear();
    let report = scenario::settle(cluster, &moved?).await?;
    print!("{}", report.text());
    Ok(report)
}

/// One line per run, and the medians.
fn summary(reports: &[Report]) {
    if reports.len() < 2 {
        return;
    }
    println!("run  total_s  pause_ms  lost  duplicated  reordered  failed");
    for (number, report) in reports.iter().enumerate() {
        let m = &report.messages;
        let failed = report.probe.as_ref().map_or(0, |probe| probe.failed);
        println!(
            "{:>3}  {:>7.2}  {:>8}  {:>4}  {:>10}  {:>9}  {:>6}",
            number + 1,
            report.total_s,
            report.pause_ms,
            m.lost,
            m.duplicated,
            m.reordered,
            failed
        );
    }
    let mut totals: Vec<f64> = reports.iter().map(|report| report.total_s).collect();
    let mut pauses: Vec<u64> = reports.iter().map(|report| report.pause_ms).collect();
    totals.sort_by(f64::total_cmp);
    pauses.sort_unstable();
    println!(
        "median total {:.2} s, pause {} ms",
        totals[totals.len() / 2],
        pauses[pauses.len() / 2]
    );
}
