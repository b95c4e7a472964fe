//! `workload producer | consumer | probe`: see the library.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use shadow_workloads::{broker, consumer, probe, producer};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

/// The workload that is migrated, its producer, and the probe that watches it.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Publish numbered messages at a steady rate, each confirmed.
    Producer(producer::Settings),
    /// Consume them, obey control messages, serve the ledger.
    Consumer(consumer::Settings),
    /// Ask for the ledger over and over and record what a client sees.
    Probe(probe::Settings),
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the producer failed")]
    Producer(#[from] producer::Error),
    #[error("the consumer failed")]
    Consumer(#[from] consumer::Error),
    #[error("the probe failed")]
    Probe(#[from] probe::Error),
    #[error("waiting for signals is not possible")]
    Signals(#[source] std::io::Error),
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,lapin=off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match run(Arguments::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", broker::chain(&error));
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<(), Error> {
    let stop = stop_at(SignalKind::terminate(), SignalKind::interrupt()).map_err(Error::Signals)?;
    match command {
        Command::Producer(settings) => producer::run(settings, stop).await?,
        Command::Consumer(settings) => consumer::run(settings, stop).await?,
        Command::Probe(settings) => probe::run(settings, stop).await?,
    }
    Ok(())
}

fn stop_at(one: SignalKind, other: SignalKind) -> std::io::Result<watch::Receiver<bool>> {
    let (mut one, mut other): (Signal, Signal) = (signal(one)?, signal(other)?);
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = one.recv() => {}
            _ = other.recv() => {}
        }
        stop.send_replace(true);
    });
    Ok(stopped)
}
