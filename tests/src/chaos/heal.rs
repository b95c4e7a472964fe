//! Puts right whatever a trial that was given up has left wrong.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::ListParams;

use crate::cluster::{Cluster, wait_for};

/// Every component runs, and nobody is cut off.
pub(super) fn all(cluster: &Cluster) -> anyhow::Result<()> {
    let lab = &cluster.lab;
    for chain in ["INPUT", "OUTPUT"] {
        // It fails where there is none.
        let _ = lab.exec("control", &["iptables", "-w", "-D", chain, "-j", "CHAOS"]);
    }
    for action in ["-F", "-X"] {
        let _ = lab.exec("control", &["iptables", "-w", action, "CHAOS"]);
    }
    for machine in std::iter::once("control".to_owned()).chain(lab.nodes()) {
        for part in lab.components(&machine)? {
            lab.start(&machine, part)?;
        }
    }
    Ok(())
}

/// Until all nodes are.
pub(super) async fn nodes_ready(cluster: &Cluster) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    wait_for("the nodes to be ready", Duration::from_mins(2), async || {
        let found = nodes.list(&ListParams::default()).await?;
        let ready = |node: &Node| {
            let status = node.status.as_ref().and_then(|status| status.conditions.as_ref());
            status.into_iter().flatten().any(|it| it.type_ == "Ready" && it.status == "True")
        };
        Ok(found.iter().all(ready).then_some(()))
    })
    .await
}
