//! `shadow`: the one binary. Operator, transfer Job and command line.

mod doctor;
mod out;
mod replay;
mod run;
mod simulate;
mod transfer;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Moves running, stateful microservices from one Kubernetes node to another.
#[derive(Parser)]
#[command(name = "shadow", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a long-lived part of SHADOW.
    #[command(subcommand)]
    Run(run::Role),
    /// Send a checkpoint archive to a registry as an image (what the transfer Job runs).
    Transfer(transfer::TransferArgs),
    /// Say whether pods can be moved in this cluster, and if not, why and what to do.
    ///
    /// It looks at the nodes, the operator's rights, and what else is named. A pod on each node, there
    /// for seconds and deleted in the end, tells what only the node knows. Nothing is moved or
    /// changed. The exit code is 1 if there is a failure. docs/operations.md explains each check.
    Doctor(doctor::DoctorArgs),
    /// Print what only this node knows, for `shadow doctor`.
    #[command(hide = true)]
    NodeFacts(doctor::NodeFactsArgs),
    /// Predict a migration: how long it takes, how long messages wait, what a fault does to it.
    ///
    /// Needs no cluster. It is a prediction: the real protocol with the operator's own settings, run
    /// against a simulated broker and cluster. How long the checkpoint, its transfer and the
    /// restore take was fitted to ten migrations on a two-node lab, with a checkpoint of 15 MB and
    /// 60 messages a second. How they grow with size and bandwidth is assumed; a busy cluster takes
    /// longer.
    Simulate(simulate::SimulateArgs),
    /// Step through a run that `shadow simulate --log` recorded, forwards and backwards.
    Replay(replay::ReplayArgs),
    /// Print the `CustomResourceDefinition`.
    Crd,
}

fn main() -> anyhow::Result<ExitCode> {
    let command = match Cli::parse().command {
        Command::Simulate(args) => return Ok(told(simulate::run(&args))),
        Command::Replay(args) => {
            return Ok(told(replay::run(&args).map(|()| ExitCode::SUCCESS)));
        }
        Command::NodeFacts(args) => return Ok(told(doctor::node_facts(&args))),
        other => other,
    };
    logging();
    // One provider for all TLS; a second call finds it installed, which is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Run(role) => run::run(role).await?,
            Command::Transfer(args) => transfer::run(args).await?,
            Command::Doctor(args) => return Ok(told(Box::pin(doctor::run(args)).await)),
            Command::Crd => print!("{}", shadow_api::crd_yaml()?),
            // Done above, without a runtime.
            Command::Simulate(_) | Command::Replay(_) | Command::NodeFacts(_) => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// An error as one sentence: what these commands say is for people.
fn told(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Logs go to standard error; `RUST_LOG` chooses, `SHADOW_LOG=json` for machines.
fn logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // Colours are for people, not for what collects logs.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    if std::env::var("SHADOW_LOG").is_ok_and(|format| format == "json") {
        builder.json().init();
    } else {
        builder.init();
    }
}
