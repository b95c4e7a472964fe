//! `shadow run …`: the long-lived parts.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand, value_parser};
use shadow_broker::rabbitmq::RabbitMq;
use shadow_checkpoint::kubelet_archives::FOLDER;
use shadow_operator::Outside;
use shadow_operator::agents::Agents;
use shadow_operator::registry::Network;
use shadow_operator::settings::{Limits, Options};
use shadow_protocol::spec::Settings;

/// What to run.
#[derive(Subcommand)]
pub enum Role {
    /// The operator: watches `StatefulMigration` objects and carries them out.
    Operator(OperatorArgs),
    /// The node agent: takes checkpoints in from other nodes, and sends those of its own.
    Agent(AgentArgs),
}

/// Options of the node agent.
#[derive(Args)]
pub struct AgentArgs {
    /// Where operator, Jobs and other agents reach it. `[::]` is IPv4, too, and only that where there is no IPv6.
    #[arg(long, env = "SHADOW_LISTEN", default_value = "[::]:9443")]
    listen: SocketAddr,
    /// Where the node's runtime reaches it.
    #[arg(long, env = "SHADOW_LISTEN_RUNTIME", default_value = "[::]:9445")]
    listen_runtime: SocketAddr,
    /// The agent's own address, by which the runtime calls it.
    #[arg(long, env = "SHADOW_ADDRESS")]
    address: IpAddr,
    /// The node's address. From there and from the pod's gateway the runtime comes, and nobody else is heard.
    #[arg(long, env = "SHADOW_NODE_ADDRESS")]
    node_address: IpAddr,
    /// Folder with tls.crt, tls.key and ca.crt.
    #[arg(long, default_value = "/etc/ms2m-agent/tls")]
    tls: PathBuf,
    /// Folder in which the runtime looks for the authorities of registries.
    #[arg(long)]
    trust: Option<PathBuf>,
    /// The kubelet's folder of checkpoint archives.
    #[arg(long, default_value = FOLDER)]
    checkpoints: PathBuf,
    /// Where archives from other nodes are kept until they are restored. It is emptied at the start.
    #[arg(long, default_value = "/var/lib/ms2m-agent")]
    staging: PathBuf,
    /// Keep them there as they are. Else each is sealed with a key that only the agent's memory has.
    #[arg(long, env = "SHADOW_PLAIN_STAGING")]
    plain_staging: bool,
    /// Larger archives are refused, in bytes.
    #[arg(long, env = "SHADOW_LARGEST_ARCHIVE", default_value_t = 32 << 30)]
    largest_archive: u64,
    /// So much of the staging disk stays free, in bytes.
    #[arg(long, env = "SHADOW_RESERVE", default_value_t = 1 << 30)]
    reserve: u64,
    /// So many archives come in at a time, and so many go out.
    #[arg(long, env = "SHADOW_AT_ONCE", default_value_t = 4)]
    at_once: usize,
}

/// So many uploads may wait for their turn.
const WAITING: usize = 64;

/// Options of the operator.
#[derive(Args)]
pub struct OperatorArgs {
    /// Image of the transfer Job: this project's own.
    #[arg(long, env = "SHADOW_TRANSFER_IMAGE", default_value = DEFAULT_IMAGE)]
    transfer_image: String,
    /// Start no pods that look at the source's node and the target's before a migration: what only the nodes
    /// know of CRIU, the runtime, the CPU and the process is not checked then.
    #[arg(long, env = "SHADOW_NO_PROBE")]
    no_probe: bool,
    /// Secret of type kubernetes.io/dockerconfigjson, in the migration's namespace, with the
    /// registry's credentials.
    #[arg(long, env = "SHADOW_REGISTRY_SECRET")]
    registry_secret: Option<String>,
    /// Leave checkpoint images in the registry and archives on the nodes, for later inspection. They are the
    /// memory of a process, its secrets included.
    #[arg(long, env = "SHADOW_KEEP_CHECKPOINTS")]
    keep_checkpoints: bool,
    /// So many migrations go on at a time; the others wait for their turn, and touch nothing.
    #[arg(long, env = "SHADOW_AT_ONCE", default_value_t = Limits::default().at_once)]
    #[arg(value_parser = value_parser!(u32).range(1..))]
    at_once: u32,
    /// Of them so many from the same node.
    #[arg(long, env = "SHADOW_AT_ONCE_FROM_NODE", default_value_t = Limits::default().from_node)]
    #[arg(value_parser = value_parser!(u32).range(1..))]
    at_once_from_node: u32,
    /// And so many to the same node.
    #[arg(long, env = "SHADOW_AT_ONCE_TO_NODE", default_value_t = Limits::default().to_node)]
    #[arg(value_parser = value_parser!(u32).range(1..))]
    at_once_to_node: u32,
    /// How often it is looked for what migrations have left that are gone, in seconds; 0: never.
    #[arg(long, env = "SHADOW_JANITOR_EVERY", default_value_t = 60)]
    janitor_every: u64,
    /// How long messages may wait at the switch, in milliseconds.
    #[arg(long, env = "SHADOW_PAUSE_BUDGET_MS", default_value_t = 200)]
    pause_budget: u64,
    /// The operator's token for the node agents, audience ms2m-agent; absent: they are not used.
    #[arg(long, env = "SHADOW_AGENT_TOKEN")]
    agent_token: Option<PathBuf>,
    /// By which this process is known among the operators, of which one leads: its pod's name. Empty: it leads
    /// always, and must be the only one.
    #[arg(long, env = "SHADOW_IDENTITY", default_value = "")]
    identity: String,
    /// Address of /healthz and /readyz; empty: none.
    #[arg(long, env = "SHADOW_HEALTH", default_value = "")]
    health: String,
}

/// This project's own image, of this version.
pub const DEFAULT_IMAGE: &str =
    concat!("ghcr.io/shadow-migration/shadow:", env!("CARGO_PKG_VERSION"));

/// Runs until SIGTERM or Ctrl-C.
pub async fn run(role: Role) -> anyhow::Result<()> {
    match role {
        Role::Operator(args) => operator(args).await,
        Role::Agent(args) => agent(args).await,
    }
}

async fn agent(args: AgentArgs) -> anyhow::Result<()> {
    let client = kube::Client::try_default().await?;
    let settings = shadow_agent::Settings {
        listen: args.listen,
        registry: args.listen_runtime,
        registry_name: SocketAddr::new(args.address, args.listen_runtime.port()).to_string(),
        runtime: std::iter::once(args.node_address).chain(shadow_agent::gateways()).collect(),
        tls: args.tls,
        trust: args.trust,
        checkpoints: args.checkpoints,
        staging: args.staging,
        plain_staging: args.plain_staging,
        largest: args.largest_archive,
        reserve: args.reserve,
        at_once: args.at_once,
        waiting: WAITING,
        patience: shadow_agent::Patience::default(),
    };
    shadow_agent::start(settings, Arc::new(client)).await?.until(stop()).await;
    Ok(())
}

async fn operator(args: OperatorArgs) -> anyhow::Result<()> {
    let health: Option<SocketAddr> =
        if args.health.is_empty() { None } else { Some(args.health.parse()?) };
    // A source stands still while its kubelet can't be asked: what is tried again, and for how long, is the
    // migration's to decide, not the client's.
    let mut config = kube::Config::infer().await?;
    config.default_retry = false;
    let client = kube::Client::try_from(config)?;
    let options = Options {
        transfer_image: args.transfer_image,
        no_probe: args.no_probe,
        registry_secret: args.registry_secret,
        keep_checkpoints: args.keep_checkpoints,
        limits: Limits {
            at_once: args.at_once,
            from_node: args.at_once_from_node,
            to_node: args.at_once_to_node,
        },
        janitor_every: (args.janitor_every > 0).then(|| Duration::from_secs(args.janitor_every)),
        identity: identity(&args.identity),
        protocol: Settings { pause_budget_ms: args.pause_budget, ..Settings::default() },
        health,
    };
    let outside = Outside {
        connector: Arc::new(RabbitMq::from_env()?),
        registry: Arc::new(Network),
        agents: args.agent_token.map(|token| Agents::new(client.clone(), token)),
        client,
    };
    shadow_operator::run(outside, options, stop()).await?;
    Ok(())
}

/// A pod's container that is started again is another one.
fn identity(name: &str) -> Option<String> {
    let begun = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let begun = begun.unwrap_or_default().as_millis();
    (!name.is_empty()).then(|| format!("{name}-{begun}"))
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
