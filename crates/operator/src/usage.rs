//! What the source uses, by its kubelet's statistics: memory, from which the freeze is predicted, and
//! the files of its volumes. They are up to a minute old, and nobody waits for them: what is not known
//! is assumed.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::{Client, ResourceExt};
use serde::Deserialize;

use crate::act::PATIENCE;
use crate::observe::chain;

/// What a pod uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Memory of each container in bytes.
    memory: BTreeMap<String, u64>,
    /// Files and folders in each volume, its own folder among them.
    inodes: BTreeMap<String, u64>,
    /// Why none of it is known, a sentence.
    pub unknown: Option<String>,
}

#[derive(Deserialize)]
struct Summary {
    #[serde(default)]
    pods: Vec<PodStats>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStats {
    pod_ref: PodRef,
    #[serde(default)]
    containers: Vec<ContainerStats>,
    #[serde(default)]
    volume: Vec<VolumeStats>,
}

#[derive(Deserialize)]
struct PodRef {
    uid: String,
}

#[derive(Deserialize)]
struct ContainerStats {
    name: String,
    #[serde(default)]
    memory: MemoryStats,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MemoryStats {
    rss_bytes: Option<u64>,
    working_set_bytes: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VolumeStats {
    name: String,
    inodes_used: Option<u64>,
}

impl Usage {
    /// A container's memory in bytes.
    pub fn memory(&self, container: &str) -> Option<u64> {
        self.memory.get(container).copied()
    }

    /// There is nothing in the volume but its own folder.
    pub fn is_empty(&self, volume: &str) -> bool {
        self.inodes.get(volume).is_some_and(|inodes| *inodes <= 1)
    }

    /// Of a pod in whose volume there is nothing.
    #[cfg(test)]
    pub fn with_empty(volume: &str) -> Self {
        Self { inodes: BTreeMap::from([(volume.to_owned(), 1)]), ..Self::default() }
    }

    fn parse(summary: &str, uid: &str) -> Result<Self, serde_json::Error> {
        let summary: Summary = serde_json::from_str(summary)?;
        let Some(pod) = summary.pods.into_iter().find(|pod| pod.pod_ref.uid == uid) else {
            return Ok(Self::default());
        };
        let memory = |it: ContainerStats| {
            Some((it.name, it.memory.rss_bytes.or(it.memory.working_set_bytes)?))
        };
        Ok(Self {
            memory: pod.containers.into_iter().filter_map(memory).collect(),
            inodes: pod
                .volume
                .into_iter()
                .filter_map(|it| Some((it.name, it.inodes_used?)))
                .collect(),
            unknown: None,
        })
    }
}

/// What `pod` uses; nothing where its kubelet does not say.
pub async fn of(client: &Client, pod: &Pod) -> Usage {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
    let uid = pod.uid().unwrap_or_default();
    let said = async {
        let path = format!("/api/v1/nodes/{node}/proxy/stats/summary");
        let request = http::Request::get(path).body(Vec::new()).map_err(|it| chain(&it))?;
        let answer = client.request_text(request).await.map_err(|it| chain(&it))?;
        Usage::parse(&answer, &uid).map_err(|it| chain(&it))
    };
    let why = match tokio::time::timeout(PATIENCE, said).await {
        Ok(Ok(usage)) => return usage,
        Ok(Err(why)) => why,
        Err(_) => "no answer".to_owned(),
    };
    tracing::warn!(node, why, "the kubelet does not say what the pod uses");
    let why =
        format!("not known what pod {} uses, by the kubelet of node {node}: {why}", pod.name_any());
    Usage { unknown: Some(why), ..Usage::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUMMARY: &str = r#"{"node":{"nodeName":"worker-1"},"pods":[
        {"podRef":{"name":"other","namespace":"default","uid":"2"},"containers":null},
        {"podRef":{"name":"app","namespace":"default","uid":"1"},
         "containers":[{"name":"app","memory":{"workingSetBytes":9,"rssBytes":7}},
                       {"name":"beside","memory":{"workingSetBytes":5}},{"name":"new"}],
         "volume":[{"name":"empty","inodesUsed":1},{"name":"full","inodesUsed":2},{"name":"odd"}]}]}"#;

    #[test]
    fn memory_and_files_are_read_as_far_as_they_are_told() {
        let summary = SUMMARY.replace("null", "[]");
        let usage = Usage::parse(&summary, "1").expect("it parses");
        let memory = ["app", "beside", "new"].map(|name| usage.memory(name));
        assert_eq!(memory, [Some(7), Some(5), None]);
        let empty = ["empty", "full", "odd", "none"].map(|name| usage.is_empty(name));
        assert_eq!(empty, [true, false, false, false]);
        assert_eq!(Usage::parse(&summary, "3").expect("it parses"), Usage::default());
        assert!(Usage::parse("<html>", "1").is_err());
    }
}
