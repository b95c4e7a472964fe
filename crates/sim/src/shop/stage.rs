//! What the shop consists of: nodes, the workload, and the wish to move it.

use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::{Value, json};
use shadow_operator::registry::{Registry, Unusable};
use shadow_protocol::pending::REMEMBERS;
use shadow_protocol::phase::{Failure, Phase, State};
use shadow_protocol::spec::{IdentitySwap, ReplayMode};
use tokio::time::timeout;

use super::START;
use crate::kube::{Kube, condition};
use crate::scenario::{OwnerKind, Scenario};
use crate::world::{EXCHANGE, QUEUE};

/// Where everything is.
pub const NAMESPACE: &str = "shop";
/// The node that the workload is on at first, and the one it moves to.
pub const NODES: [&str; 2] = ["worker-1", "worker-2"];
/// The container that moves.
pub const CONTAINER: &str = "app";

/// A registry that everybody may push to.
pub struct Open;

impl Registry for Open {
    fn check<'a>(&'a self, _: &'a str, _: Option<&'a str>) -> BoxFuture<'a, Result<(), Unusable>> {
        Box::pin(async { Ok(()) })
    }

    fn remove<'a>(&'a self, _: &'a str, _: Option<&'a str>) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

/// Two nodes and the workload; the name of its pod.
#[expect(clippy::panic, reason = "without a workload there is nothing to simulate")]
pub async fn set_up(kube: &Kube, scenario: &Scenario) -> String {
    let created = create(kube, scenario);
    if let Err(refusal) = created {
        panic!("setting up the shop: {refusal}");
    }
    let found = until(kube, || kube.all("pods").into_iter().find(|pod| condition(pod, "Ready")));
    let Ok(pod) = timeout(Duration::from_mins(1), found).await else {
        panic!("the workload does not come up");
    };
    kube.cordon(NODES[1], false);
    pod["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn create(kube: &Kube, scenario: &Scenario) -> Result<(), crate::kube::Refusal> {
    for node in NODES {
        kube.add_node(node)?;
    }
    kube.cordon(NODES[1], true);
    let annotations =
        if scenario.habits.remembers { json!({ REMEMBERS: "true" }) } else { json!({}) };
    let template = json!({
        "metadata": { "labels": { "app": "consumer" }, "annotations": annotations },
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "containers": [{ "name": CONTAINER, "image": "registry.example/app:1" }],
        },
    });
    match scenario.owner {
        OwnerKind::Bare => {
            let mut pod = template;
            (pod["apiVersion"], pod["kind"]) = (json!("v1"), json!("Pod"));
            pod["metadata"]["name"] = json!("consumer");
            pod["metadata"]["namespace"] = json!(NAMESPACE);
            kube.create(pod)?;
        }
        OwnerKind::Deployment => deployment(kube, &template, scenario.seed.is_multiple_of(4))?,
        OwnerKind::StatefulSet | OwnerKind::Shrinking => stateful_set(kube, &template)?,
    }
    Ok(())
}

fn deployment(kube: &Kube, template: &Value, recreates: bool) -> Result<(), crate::kube::Refusal> {
    let strategy = if recreates { "Recreate" } else { "RollingUpdate" };
    kube.create(json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": "app", "namespace": NAMESPACE },
        "spec": {
            "replicas": 1, "selector": { "matchLabels": { "app": "consumer" } },
            "strategy": { "type": strategy }, "template": template,
        },
    }))?;
    Ok(())
}

fn stateful_set(kube: &Kube, template: &Value) -> Result<(), crate::kube::Refusal> {
    kube.create(json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": { "name": "app", "namespace": NAMESPACE },
        "spec": {
            "replicas": 1, "selector": { "matchLabels": template["metadata"]["labels"] },
            "template": template,
        },
    }))?;
    Ok(())
}

/// Waits until `found` finds something.
async fn until<T>(kube: &Kube, mut found: impl FnMut() -> Option<T>) -> T {
    let mut changes = kube.changes();
    loop {
        changes.borrow_and_update();
        if let Some(found) = found() {
            return found;
        }
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// A migration that has ended long since, and that knows where the broker is.
pub fn leave_a_trace(kube: &Kube, source: &str, scenario: &Scenario) {
    let failure = Failure { reason: "Aborted".to_owned(), message: "long since".to_owned() };
    let state = State::new(START).go(Phase::Failed { failure, rolled_back: true }, START);
    let mut object = wish(source, "earlier", scenario);
    object["status"] = json!({ "phase": "Failed", "state": state });
    let created = kube.create(object);
    debug_assert!(created.is_ok(), "{created:?}");
}

/// The wish that `source` be moved, as the user writes it.
pub fn wish(source: &str, name: &str, scenario: &Scenario) -> Value {
    let mode = scenario.mode.and_then(|mode| match mode {
        ReplayMode::Cutoff => Some("Cutoff"),
        ReplayMode::Drain => Some("Drain"),
        ReplayMode::Park => Some("Park"),
        ReplayMode::Alone => None,
    });
    let mut spec = json!({
        "sourcePod": source, "targetNode": NODES[1],
        "checkpointImageRepository": "registry.example/checkpoints",
    });
    if let Some(mode) = mode {
        spec["replayMode"] = json!(mode);
    }
    let swap = match scenario.swap {
        IdentitySwap::None => None,
        IdentitySwap::ExchangeFence => Some("ExchangeFence"),
        IdentitySwap::Cutoff => Some("Cutoff"),
    };
    if let Some(swap) = swap {
        spec["identitySwapMode"] = json!(swap);
    }
    if scenario.owner == OwnerKind::Shrinking || swap.is_some() {
        spec["migrationStrategy"] = json!("ShadowPod");
    }
    if scenario.seed.is_multiple_of(3) {
        spec["pinToTargetNode"] = json!(false);
    }
    if !scenario.alone() {
        spec["messageQueueConfig"] = json!({
            "queueName": QUEUE, "exchangeName": EXCHANGE, "brokerUrl": "amqp://broker",
        });
    }
    json!({
        "apiVersion": "migration.ms2m.io/v1alpha1", "kind": "StatefulMigration",
        "metadata": { "name": name, "namespace": NAMESPACE }, "spec": spec,
    })
}
