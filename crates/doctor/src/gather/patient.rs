//! The named pod.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::{Api, Client, ResourceExt};

use super::{Error, PodName, ask, kubelet};
use crate::facts::{Facts, Known, Patient};
use crate::text::Text;

/// Reads the pod, the handler of its `RuntimeClass`, and its memory.
pub async fn read(client: &Client, name: Option<&PodName>) -> Result<Option<Patient>, Error> {
    let Some(name) = name else { return Ok(None) };
    let namespace = name.namespace.as_deref().unwrap_or(client.default_namespace());
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let found = ask(async { api.get(&name.name).await }).await;
    let named = |why| Error::Pod { name: format!("{namespace}/{}", name.name), why };
    let pod = found.map_err(named)?;
    let spec = pod.spec.clone().unwrap_or_default();
    let first = spec.containers.first().map(|it| it.name.clone()).unwrap_or_default();
    let container = name.container.clone().unwrap_or(first);
    let memory = match &spec.node_name {
        Some(node) => {
            let uid = pod.uid().unwrap_or_default();
            kubelet::memory(client, node, &uid, &container).await
        }
        None => Err(Text::from("the pod is on no node")),
    };
    Ok(Some(Patient { memory, ..described(client, pod, container, None).await }))
}

/// Reads the handler of its `RuntimeClass`.
pub async fn described(
    client: &Client,
    pod: Pod,
    container: String,
    memory: Option<u64>,
) -> Patient {
    let class = pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_ref());
    let handler = match class {
        Some(class) => Some(handler(client, class).await),
        None => None,
    };
    let memory = memory.ok_or_else(|| Text::from("its memory is not known yet"));
    Patient { pod, container, handler, memory }
}

async fn handler(client: &Client, class: &str) -> Known<Text> {
    let api: Api<RuntimeClass> = Api::all(client.clone());
    ask(async { api.get(class).await }).await.map(|class| class.handler.into())
}

/// The node that the container runs on, and its ID there.
pub fn place(patient: &Patient) -> Option<(String, String)> {
    let node = patient.pod.spec.as_ref()?.node_name.clone()?;
    let statuses = patient.pod.status.as_ref()?.container_statuses.as_ref()?;
    let status = statuses.iter().find(|status| status.name == patient.container)?;
    status.state.as_ref()?.running.as_ref()?;
    let (_, id) = status.container_id.as_ref()?.split_once("://")?;
    Some((node, id.to_owned()))
}

/// Where the kubelet does not tell the memory, the processes do.
pub fn complete(facts: &mut Facts) {
    let Facts { nodes, pod: Some(patient), .. } = facts else { return };
    let processes = nodes.iter().filter_map(|node| node.report.as_ref().ok()?.process.as_ref());
    if let Some(Ok(process)) = processes.into_iter().next()
        && patient.memory.is_err()
    {
        patient.memory = Ok(process.memory);
    }
}
