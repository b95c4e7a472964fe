//! `cargo xtask lab`.

use std::process::{self, ExitCode};

use anyhow::Context as _;
use shadow_lab::Lab;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Bring the lab up; the first time, its parts are built
    Up {
        /// The number of worker nodes
        #[arg(long, default_value_t = 2)]
        nodes: u8,
    },
    /// Remove the lab; its built parts stay in the cache
    Down,
    /// Show machines and components; fails if something is down
    Status,
    /// Run a command on a node, or on the machine `control`
    Exec {
        node: String,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        argv: Vec<String>,
    },
    /// Print the path of the administrator's kubeconfig
    Kubeconfig,
    /// Run kubectl as administrator
    #[command(disable_help_flag = true)]
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up { nodes } => {
            let lab = shadow_lab::up(nodes)?;
            println!("export KUBECONFIG={}", lab.kubeconfig().display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Down => {
            shadow_lab::down()?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Status => status(),
        Command::Exec { node, argv } => forward(&mut Lab::open()?.command(&node, &argv)?),
        Command::Kubeconfig => {
            println!("{}", Lab::open()?.kubeconfig().display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Kubectl { arguments } => forward(Lab::open()?.kubectl()?.args(arguments)),
    }
}

fn status() -> anyhow::Result<ExitCode> {
    let lab = Lab::open()?;
    let mut all_up = true;
    for machine in std::iter::once("control".to_owned()).chain(lab.nodes()) {
        for component in lab.components(&machine)? {
            let up = lab.is_up(&machine, component)?;
            all_up &= up;
            println!("{machine:<12} {component:<24} {}", if up { "up" } else { "DOWN" });
        }
    }
    println!("api server   {}", lab.api_server());
    println!("registry     {} ({} inside the cluster)", lab.registry(), shadow_lab::REGISTRY_NAME);
    let broker = lab.rabbitmq();
    println!(
        "rabbitmq     {}:{} (management {})",
        broker.host, broker.amqp_port, broker.management_port
    );
    println!("cgroups      {}", lab.cgroup_count()?);
    Ok(if all_up { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a command with our own standard streams and ends as it ends.
fn forward(command: &mut process::Command) -> anyhow::Result<ExitCode> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
