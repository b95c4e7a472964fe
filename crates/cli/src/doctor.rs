//! `shadow doctor`: whether pods can be moved, and if not, why and what to do.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use shadow_broker::rabbitmq::RabbitMq;
use shadow_doctor::gather::{BrokerAt, Options, PodName, RegistryAt, Url, facts};
use shadow_doctor::probe::NodeRoot;
use shadow_doctor::{checks, print, probe};

use crate::run::{DEFAULT_IMAGE, stop};

/// What to look at.
#[derive(Args)]
pub struct DoctorArgs {
    /// A pod that is to be moved.
    #[arg(value_name = "pod/NAME", value_parser = pod)]
    pod: Option<String>,
    /// The pod's namespace; else that of the kubeconfig.
    #[arg(long, short, requires = "pod")]
    namespace: Option<String>,
    /// The container to be moved; else the pod's first.
    #[arg(long, short, requires = "pod")]
    container: Option<String>,
    /// Look at this node, and at others so named, only: those that pods are moved between.
    #[arg(long = "node", value_name = "NODE")]
    nodes: Vec<String>,
    /// Image of the pods that look at the nodes: this project's own.
    #[arg(long, env = "SHADOW_PROBE_IMAGE", default_value = DEFAULT_IMAGE)]
    probe_image: String,
    /// Create no pods: what only the nodes know stays unknown.
    #[arg(long)]
    no_probe: bool,
    /// Look at the broker there, too. A password in the URL is seen in the list of processes.
    #[arg(long, value_name = "URL", group = "broker")]
    broker_url: Option<String>,
    /// As --broker-url, from a Secret.
    #[arg(long, value_name = "NAMESPACE/NAME/KEY", value_parser = secret, group = "broker")]
    broker_secret: Option<Url>,
    /// The broker's management API; else on its host, with the same credentials.
    #[arg(long, value_name = "URL", requires = "broker")]
    management_url: Option<String>,
    /// The queue that the pod consumes.
    #[arg(long, requires = "broker")]
    queue: Option<String>,
    /// Look at the registry of checkpoint images, too.
    #[arg(long, value_name = "HOST/REPOSITORY")]
    registry: Option<String>,
    /// Docker config file with the registry's credentials; else config.json in `DOCKER_CONFIG` or
    /// ~/.docker is used, if there is one.
    #[arg(long, value_name = "FILE", requires = "registry")]
    registry_auth: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn pod(text: &str) -> Result<String, String> {
    let name = text.strip_prefix("pod/").or_else(|| text.strip_prefix("pods/"));
    let name = name.filter(|name| !name.is_empty() && !name.contains('/'));
    name.map(str::to_owned).ok_or_else(|| "write pod/NAME, as pod/consumer-0".to_owned())
}

fn secret(text: &str) -> Result<Url, String> {
    let parts: Vec<&str> = text.split('/').collect();
    match parts[..] {
        [namespace, name, key] if parts.iter().all(|part| !part.is_empty()) => Ok(Url::Secret {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            key: key.to_owned(),
        }),
        _ => Err("write NAMESPACE/NAME/KEY, as shop/rabbitmq/url".to_owned()),
    }
}

/// Prints the findings. The exit code is 1 if there is a failure among them.
pub async fn run(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let json = args.json;
    let client = kube::Client::try_default().await?;
    let (connector, options) = (RabbitMq::from_env()?, options(args));
    let found = Box::pin(facts(&client, &connector, &options, stop())).await?;
    let findings = checks::all(&found);
    let text = if json {
        serde_json::to_string_pretty(&print::json(&findings))? + "\n"
    } else {
        print::text(&findings)
    };
    crate::out::print(&text)?;
    Ok(if print::passes(&findings) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn options(args: DoctorArgs) -> Options {
    let (namespace, container) = (args.namespace, args.container);
    let url = args.broker_url.map(Url::Given).or(args.broker_secret);
    let (management_url, queue) = (args.management_url, args.queue);
    let auth = args.registry_auth;
    Options {
        nodes: args.nodes,
        pod: args.pod.map(|name| PodName { namespace, name, container }),
        probe_image: (!args.no_probe).then_some(args.probe_image),
        broker: url.map(|url| BrokerAt { url, management_url, queue }),
        registry: args.registry.map(|repository| RegistryAt { repository, auth }),
    }
}

/// What a probe is to look at.
#[derive(Args)]
pub struct NodeFactsArgs {
    /// The node's root folder.
    #[arg(long)]
    root: PathBuf,
    /// ID of a container whose processes are looked at.
    #[arg(long)]
    container: Option<String>,
}

/// Prints what this node knows, one line of JSON. It does not fail: what it can't find out it says.
pub fn node_facts(args: &NodeFactsArgs) -> anyhow::Result<ExitCode> {
    let container = args.container.as_deref();
    let report = match NodeRoot::enter(&args.root) {
        Ok(host) => probe::report(Path::new("/"), &host, container),
        Err(why) => probe::report(&args.root, &why, container),
    };
    crate::out::print(&format!("{}\n", serde_json::to_string(&report)?))?;
    Ok(ExitCode::SUCCESS)
}
