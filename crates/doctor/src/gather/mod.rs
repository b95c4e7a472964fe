//! Gather: what the API server, the kubelets, a pod on each node, the broker and the registry say.
//!
//! Everything is asked at once, and nothing that fails hides the rest.

mod kubelet;
mod nodes;
mod outside;
mod patient;
mod probe_pod;
mod rights;

use std::path::PathBuf;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use futures::stream::{self, StreamExt as _};
use k8s_openapi::api::core::v1::{self as core, Pod};
use kube::{Client, ResourceExt};
use shadow_broker::Connector;

use self::probe_pod::Probe;
use crate::facts::{Facts, Known, Report};
use crate::text::{Text, chain};

/// How long the API server may take for one answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Nodes that are asked at a time.
const AT_ONCE: usize = 16;

/// What to look at.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Names of the nodes, the pod's own besides; none: all of them.
    pub nodes: Vec<String>,
    /// A pod to be moved.
    pub pod: Option<PodName>,
    /// Image of the pods that look at the nodes; nothing: there are none.
    pub probe_image: Option<String>,
    /// A broker.
    pub broker: Option<BrokerAt>,
    /// A registry.
    pub registry: Option<RegistryAt>,
}

/// A pod.
#[derive(Debug, Clone)]
pub struct PodName {
    /// Its namespace; nothing: that of the kubeconfig.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// The container to be moved; nothing: the first.
    pub container: Option<String>,
}

/// A broker.
#[derive(Debug, Clone)]
pub struct BrokerAt {
    /// Its URL.
    pub url: Url,
    /// As in [`shadow_broker::Target`].
    pub management_url: Option<String>,
    /// A queue there.
    pub queue: Option<String>,
}

/// Where a broker's URL is. Its `Debug` does not show it: there may be a password in it.
#[derive(Clone)]
pub enum Url {
    /// Here.
    Given(String),
    /// In a Secret.
    Secret {
        /// The Secret's namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The key in it.
        key: String,
    },
}

impl std::fmt::Debug for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Url(hidden)")
    }
}

/// A registry.
#[derive(Debug, Clone)]
pub struct RegistryAt {
    /// `host/repository`
    pub repository: String,
    /// A docker config file with credentials.
    pub auth: Option<PathBuf>,
}

/// Without what doctor can say nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster does not tell its nodes.
    #[error("list the nodes: {0}; check the kubeconfig, and that you may list nodes")]
    Nodes(Text),
    /// A named node is not there.
    #[error("there is no node {0}; list them with kubectl get nodes")]
    NoNode(String),
    /// The named pod is not to be had.
    #[error("read pod {name}: {why}; check its name and namespace (-n)")]
    Pod {
        /// `namespace/name`
        name: String,
        /// Why.
        why: Text,
    },
    /// A signal.
    #[error("stopped by a signal; the pods that looked at the nodes are deleted")]
    Stopped,
}

/// Resolves when it is time to stop.
type Stop = Shared<BoxFuture<'static, ()>>;

/// Asks for everything. When `stop` resolves, only what was made is deleted yet.
pub async fn facts(
    client: &Client,
    connector: &dyn Connector,
    options: &Options,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<Facts, Error> {
    let stop: Stop = stop.boxed().shared();
    let first = async {
        tokio::try_join!(nodes::list(client), patient::read(client, options.pod.as_ref()))
    };
    let (listed, pod) = tokio::select! {
        found = first.boxed() => found?,
        () = stop.clone() => return Err(Error::Stopped),
    };
    let listed = nodes::chosen(listed, &options.nodes, pod.as_ref())?;
    let names: Vec<String> = listed.iter().map(ResourceExt::name_any).collect();
    let image = options.probe_image.as_deref();
    let container = pod.as_ref().and_then(patient::place);
    let asked = names.clone().into_iter().zip(listed.iter().map(nodes::is_ready)).collect();
    let reports = reports(client, image, asked, container, stop.clone()).boxed();
    let others = async {
        let outside =
            outside::ask(client, connector, options.broker.as_ref(), options.registry.as_ref());
        let nodes = (nodes::gates(client, names), nodes::agents(client));
        tokio::join!(rights::ask_all(client), nodes::crd(client), outside, nodes.0, nodes.1)
    };
    let others = async {
        tokio::select! {
            told = others.boxed() => Some(told),
            () = stop.clone() => None,
        }
    };
    let (reports, others) = tokio::join!(reports, others);
    let others = others.filter(|_| stop.peek().is_none()).ok_or(Error::Stopped)?;
    let (rights, crd, (broker, registry), gates, agents) = others;
    let nodes = nodes::described(&listed, gates, reports, &agents);
    let all = options.nodes.is_empty();
    let mut facts = Facts { nodes, all, rights, crd, broker, registry, pod };
    patient::complete(&mut facts);
    Ok(facts)
}

/// A move that is about to begin, as its operator has it in hand.
pub struct Move<'a> {
    /// The pod.
    pub pod: Pod,
    /// The container to be moved.
    pub container: String,
    /// Its memory in bytes, if that is known.
    pub memory: Option<u64>,
    /// The pod's node and the target.
    pub nodes: [core::Node; 2],
    /// Image of the pods that look at both nodes; nothing: there are none.
    pub probe_image: Option<&'a str>,
}

/// What is to be known of one move: nothing of broker, registry, rights and agents, which its operator
/// asks for itself.
pub async fn facts_of_move(client: &Client, about: Move<'_>) -> Facts {
    let Move { pod, container, memory, nodes, probe_image } = about;
    let patient = patient::described(client, pod, container, memory).await;
    let names = || nodes.iter().map(ResourceExt::name_any);
    let asked = names().zip(nodes.iter().map(nodes::is_ready)).collect();
    let never: Stop = std::future::pending().boxed().shared();
    let (gates, reports) = tokio::join!(
        nodes::gates(client, names().collect()),
        reports(client, probe_image, asked, patient::place(&patient), never).boxed(),
    );
    let unasked = || Text::from("not asked");
    let nodes = nodes::described(&nodes, gates, reports, &Err(unasked()));
    let (rights, crd) = (Err(unasked()), Err(unasked()));
    let pod = Some(patient);
    let mut facts = Facts { nodes, all: false, rights, crd, broker: None, registry: None, pod };
    patient::complete(&mut facts);
    facts
}

/// A question's answer, or why there is none.
async fn ask<T>(question: impl Future<Output = Result<T, kube::Error>>) -> Known<T> {
    match tokio::time::timeout(PATIENCE, question).await {
        Ok(answer) => answer.map_err(|error| refusal(&error)),
        Err(_) => Err(Text::from(format!("no answer within {} s", PATIENCE.as_secs()))),
    }
}

/// The API server's own sentence says who may not do what; a watch wraps it.
fn refusal(error: &(dyn std::error::Error + 'static)) -> Text {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let api = causes.filter_map(|cause| cause.downcast_ref::<kube::Error>());
    let mut said = api.filter_map(|error| match error {
        kube::Error::Api(status) if !status.message.is_empty() => Some(status.message.as_str()),
        _ => None,
    });
    said.next().map_or_else(|| chain(error), Text::from)
}

/// For each node, in order, what its probe tells.
async fn reports(
    client: &Client,
    image: Option<&str>,
    nodes: Vec<(String, bool)>,
    container: Option<(String, String)>,
    stop: Stop,
) -> Vec<Known<Report>> {
    let Some(image) = image else {
        let why = Text::from("only the node knows, and it was not asked (--no-probe)");
        return vec![Err(why); nodes.len()];
    };
    let asked = nodes.into_iter().enumerate().map(|(index, (node, ready))| {
        let container = container.as_ref().filter(|(on, _)| *on == node).map(|(_, id)| id.clone());
        let stop = stop.clone();
        let probe = Probe { index, node, image, container };
        async move {
            if ready {
                probe_pod::ask(client, &probe, stop).boxed().await
            } else {
                Err(Text::from("only the node knows, and it is not Ready"))
            }
        }
    });
    stream::iter(asked).buffered(AT_ONCE).collect().await
}

#[cfg(test)]
mod tests;
