//! What the API server says of the nodes, and of what is installed.

use futures::stream::{self, StreamExt as _};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use shadow_api::names::SYSTEM_NAMESPACE;

use super::{AT_ONCE, Error, ask, kubelet};
use crate::facts::{Agent, Crd, Known, Node, Patient, Report};

const AGENTS: &str = "app.kubernetes.io/name=ms2m-agent";

/// The nodes.
pub async fn list(client: &Client) -> Result<Vec<core::Node>, Error> {
    let api: Api<core::Node> = Api::all(client.clone());
    let found = ask(async { api.list(&ListParams::default()).await }).await;
    Ok(found.map_err(Error::Nodes)?.items)
}

/// Those of these names, and the named pod's, which the others are compared with; without names, all.
pub fn chosen(
    mut nodes: Vec<core::Node>,
    names: &[String],
    pod: Option<&Patient>,
) -> Result<Vec<core::Node>, Error> {
    let is_there = |name: &&String| nodes.iter().any(|node| node.name_any() == **name);
    if let Some(missing) = names.iter().find(|name| !is_there(name)) {
        return Err(Error::NoNode(missing.clone()));
    }
    let own = pod.and_then(|patient| patient.pod.spec.as_ref()?.node_name.clone());
    nodes.retain(|node| {
        let name = node.name_any();
        names.is_empty() || names.contains(&name) || own.as_ref() == Some(&name)
    });
    Ok(nodes)
}

/// Its condition `Ready`.
pub fn is_ready(node: &core::Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.filter(|it| it.type_ == "Ready" && it.status == "True").count() > 0
}

/// The feature gate on each node, in order.
pub async fn gates(client: &Client, nodes: Vec<String>) -> Vec<Known<Option<bool>>> {
    let asked = nodes.into_iter().map(|node| async move { kubelet::gate(client, &node).await });
    stream::iter(asked).buffered(AT_ONCE).collect().await
}

/// The agent's pods.
pub async fn agents(client: &Client) -> Known<Vec<core::Pod>> {
    let api: Api<core::Pod> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let found = ask(async { api.list(&ListParams::default().labels(AGENTS)).await }).await;
    found.map(|list| list.items)
}

fn agent_on(node: &str, pods: &[core::Pod]) -> Agent {
    let here = |pod: &&core::Pod| {
        pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node)
    };
    let ready = |pod: &core::Pod| {
        let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.filter(|it| it.type_ == "Ready" && it.status == "True").count() > 0
    };
    let mut pods = pods.iter().filter(here).peekable();
    match (pods.peek().is_some(), pods.any(ready)) {
        (false, _) => Agent::Absent,
        (true, false) => Agent::Unready,
        (true, true) => Agent::Ready,
    }
}

/// The CRD.
pub async fn crd(client: &Client) -> Known<Crd> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = "statefulmigrations.migration.ms2m.io";
    let found = ask(async { api.get_opt(name).await }).await?;
    Ok(found.map_or(Crd::Absent, |found| {
        let served = found.spec.versions.iter().any(|it| it.name == "v1alpha1" && it.served);
        if served { Crd::Served } else { Crd::OtherVersion }
    }))
}

/// All that is known of each of `nodes`, by name.
pub fn described(
    nodes: &[core::Node],
    gates: Vec<Known<Option<bool>>>,
    reports: Vec<Known<Report>>,
    agents: &Known<Vec<core::Pod>>,
) -> Vec<Node> {
    let told = nodes.iter().zip(gates).zip(reports);
    let mut described: Vec<Node> = told
        .map(|((node, gate), report)| {
            let info = node.status.as_ref().and_then(|status| status.node_info.clone());
            let info = info.unwrap_or_default();
            let name = node.name_any();
            Node {
                ready: is_ready(node),
                kubelet: info.kubelet_version.into(),
                runtime: info.container_runtime_version.into(),
                kernel: info.kernel_version.into(),
                architecture: info.architecture.into(),
                gate,
                agent: agents.as_ref().map(|pods| agent_on(&name, pods)).map_err(Clone::clone),
                report,
                name,
            }
        })
        .collect();
    described.sort_by(|a, b| a.name.cmp(&b.name));
    described
}
