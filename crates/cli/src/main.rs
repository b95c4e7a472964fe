//! `shadow`: the one binary. Operator, transfer Job and command line.

mod run;
mod transfer;

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
    /// Print the `CustomResourceDefinition`.
    Crd,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    logging();
    // One provider for all TLS; a second call finds it installed, which is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match cli.command {
            Command::Run(role) => run::run(role).await,
            Command::Transfer(args) => transfer::run(args).await,
            Command::Crd => {
                print!("{}", shadow_api::crd_yaml()?);
                Ok(())
            }
        }
    })
}

/// Logs go to standard error; `RUST_LOG` chooses, `SHADOW_LOG=json` for machines.
fn logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::env::var("SHADOW_LOG").is_ok_and(|format| format == "json") {
        builder.json().init();
    } else {
        builder.init();
    }
}
