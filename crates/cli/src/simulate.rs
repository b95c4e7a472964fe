//! `shadow simulate`: what a migration would cost, without a cluster.

mod print;
mod units;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, ValueEnum};
use shadow_protocol::spec;
use shadow_sim::forecast::{FaultAt, Forecast, NoSuchStep, Options, forecast, forecast_recorded};

/// The load, the checkpoint, and how to move it.
#[derive(Args)]
pub struct SimulateArgs {
    /// Messages per second, of all publishers together.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    rate: u64,
    /// Time that the application needs per message: 2ms, 500us, 1s.
    #[arg(long, value_name = "TIME", default_value = "2ms", value_parser = units::micros)]
    service_time: u64,
    /// Messages that wait in the queue when the migration begins.
    #[arg(long, value_name = "MESSAGES", default_value_t = 0)]
    #[arg(value_parser = clap::value_parser!(u32).range(..=10_000_000))]
    backlog: u32,
    /// How many publishers.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..))]
    publishers: u8,
    /// Size of the checkpoint in megabytes.
    #[arg(long, value_name = "MB", default_value_t = 15)]
    #[arg(value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    checkpoint_mb: u64,
    /// Of the network to and from the registry: 100MB/s, 1GB/s.
    #[arg(long, default_value = "100MB/s", value_parser = units::bandwidth)]
    bandwidth: u64,
    /// How the target pod comes to be. Sequential is that of StatefulSets.
    #[arg(long, value_enum, ignore_case = true, default_value_t = Strategy::ShadowPod)]
    strategy: Strategy,
    /// When the target may take over; absent: chosen as the operator chooses it.
    #[arg(long, value_enum, ignore_case = true)]
    replay_mode: Option<ReplayMode>,
    /// The application goes to its own queue whenever it connects, whatever it was told before.
    #[arg(long)]
    forgets_queue: bool,
    /// Seed of what is left to chance. The same seed gives the same output.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What goes wrong: a phase or step at which the operator crashes (checkpointing, cut-b), or
    /// KIND@STEP with KIND operator-crash, source-crash, source-gone, target-crash, target-gone,
    /// broker-restart, connections-cut, push-fails, restore-fails, late-deliveries,
    /// second-consumer, abort or delete.
    #[arg(long, value_name = "[KIND@]STEP")]
    fault: Option<FaultAt>,
    /// Form of the output.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Record the run for `shadow replay`.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Clone, Copy, ValueEnum)]
enum Strategy {
    #[value(name = "ShadowPod")]
    ShadowPod,
    #[value(name = "Sequential")]
    Sequential,
}

#[derive(Clone, Copy, ValueEnum)]
enum ReplayMode {
    #[value(name = "Cutoff")]
    Cutoff,
    #[value(name = "Drain")]
    Drain,
    #[value(name = "Park")]
    Park,
}

/// Prints the forecast. The exit code is 1 if an invariant is broken, and 2 for a wrong option.
pub fn run(args: &SimulateArgs) -> anyhow::Result<ExitCode> {
    let options = options(args);
    let forecast = if let Some(file) = &args.log {
        let (forecast, recording) = forecast_recorded(&options).unwrap_or_else(|it| refuse(&it));
        std::fs::write(file, recording.write()?)
            .with_context(|| format!("write the log to {}", file.display()))?;
        forecast
    } else {
        forecast(&options).unwrap_or_else(|it| refuse(&it))
    };
    let text = match args.output {
        Output::Text => print::text(&forecast),
        Output::Json => serde_json::to_string_pretty(&forecast)? + "\n",
    };
    crate::out::print(&text)?;
    Ok(verdict(&forecast))
}

fn verdict(forecast: &Forecast) -> ExitCode {
    if forecast.verdict.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn refuse(error: &NoSuchStep) -> ! {
    let message = format!("--fault: {error}\n");
    clap::Error::raw(ErrorKind::InvalidValue, message).with_cmd(&crate::Cli::command()).exit()
}

fn options(args: &SimulateArgs) -> Options {
    Options {
        rate: args.rate,
        service_micros: args.service_time,
        backlog: args.backlog,
        publishers: args.publishers,
        checkpoint_mb: args.checkpoint_mb,
        bandwidth: args.bandwidth,
        strategy: match args.strategy {
            Strategy::ShadowPod => spec::Strategy::ShadowPod,
            Strategy::Sequential => spec::Strategy::Sequential,
        },
        replay_mode: args.replay_mode.map(|mode| match mode {
            ReplayMode::Cutoff => spec::ReplayMode::Cutoff,
            ReplayMode::Drain => spec::ReplayMode::Drain,
            ReplayMode::Park => spec::ReplayMode::Park,
        }),
        remembers_queue: !args.forgets_queue,
        seed: args.seed,
        fault: args.fault.clone(),
    }
}
