//! `shadow run …`: the long-lived parts.

use std::net::SocketAddr;
use std::sync::Arc;

use clap::{Args, Subcommand};
use shadow_broker::rabbitmq::RabbitMq;
use shadow_operator::Outside;
use shadow_operator::registry::Network;
use shadow_operator::settings::Options;
use shadow_protocol::spec::Settings;

/// What to run.
#[derive(Subcommand)]
pub enum Role {
    /// The operator: watches `StatefulMigration` objects and carries them out.
    Operator(OperatorArgs),
}

/// Options of the operator.
#[derive(Args)]
pub struct OperatorArgs {
    /// Image of the transfer Job: this project's own.
    #[arg(long, env = "SHADOW_TRANSFER_IMAGE", default_value = DEFAULT_IMAGE)]
    transfer_image: String,
    /// Secret of type kubernetes.io/dockerconfigjson, in the migration's namespace, with the
    /// registry's credentials.
    #[arg(long, env = "SHADOW_REGISTRY_SECRET")]
    registry_secret: Option<String>,
    /// How long messages may wait at the switch, in milliseconds.
    #[arg(long, env = "SHADOW_PAUSE_BUDGET_MS", default_value_t = 200)]
    pause_budget: u64,
    /// Address of /healthz and /readyz; empty: none.
    #[arg(long, env = "SHADOW_HEALTH", default_value = "")]
    health: String,
}

/// This project's own image, of this version.
pub const DEFAULT_IMAGE: &str =
    concat!("ghcr.io/shadow-migration/shadow:", env!("CARGO_PKG_VERSION"));

/// Runs until SIGTERM or Ctrl-C.
pub async fn run(role: Role) -> anyhow::Result<()> {
    let Role::Operator(args) = role;
    let health: Option<SocketAddr> =
        if args.health.is_empty() { None } else { Some(args.health.parse()?) };
    let client = kube::Client::try_default().await?;
    let options = Options {
        transfer_image: args.transfer_image,
        registry_secret: args.registry_secret,
        protocol: Settings { pause_budget_ms: args.pause_budget, ..Settings::default() },
        health,
    };
    let outside =
        Outside { client, connector: Arc::new(RabbitMq::from_env()?), registry: Arc::new(Network) };
    shadow_operator::run(outside, options, stop()).await?;
    Ok(())
}

/// Resolves on SIGTERM or Ctrl-C; from its first poll on, neither ends the process.
pub async fn stop() {
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = terminate => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
