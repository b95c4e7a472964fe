//! One migration: create the object, follow it to its end.

use std::time::Duration;

use anyhow::{Context, bail};
use futures::StreamExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use shadow_api::StatefulMigration;

use crate::cluster::{Cluster, wait_for};

/// The migrations of the default namespace.
pub fn migrations(cluster: &Cluster) -> Api<StatefulMigration> {
    Api::namespaced(cluster.client.clone(), "default")
}

/// A migration as the specification's example writes it.
pub fn manifest(name: &str, source_pod: &str, target_node: &str) -> Value {
    json!({
        "apiVersion": "migration.ms2m.io/v1alpha1",
        "kind": "StatefulMigration",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "sourcePod": source_pod,
            "targetNode": target_node,
            "checkpointImageRepository": format!("{}/checkpoints", shadow_lab::REGISTRY_NAME),
            "replayCutoffSeconds": 120,
            "migrationStrategy": "ShadowPod",
            "transferMode": "Registry",
            "messageQueueConfig": {
                "queueName": "app.events",
                "brokerSecretRef": { "name": "broker", "key": "url" },
                "exchangeName": "app.fanout",
                "routingKey": "",
            },
        },
    })
}

/// Creates a migration.
pub async fn create(cluster: &Cluster, manifest: Value) -> anyhow::Result<()> {
    let object: StatefulMigration = serde_json::from_value(manifest)?;
    migrations(cluster).create(&PostParams::default(), &object).await?;
    Ok(())
}

/// The phase that an object shows.
pub fn phase(object: &StatefulMigration) -> &str {
    object.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("")
}

/// Follows a migration until it is Completed or Failed; every change is shown to `seen`.
pub async fn follow(
    cluster: &Cluster,
    name: &str,
    patience: Duration,
    mut seen: impl AsyncFnMut(&StatefulMigration) -> anyhow::Result<()>,
) -> anyhow::Result<StatefulMigration> {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let stream = watcher(migrations(cluster), config).default_backoff().applied_objects();
    let mut stream = std::pin::pin!(stream);
    let mut last = String::from("nothing yet");
    let work = async {
        while let Some(object) = stream.next().await {
            // A definition that is replaced ends the watches of its objects; it begins anew.
            let Ok(object) = object.inspect_err(|error| last = error.to_string()) else { continue };
            seen(&object).await?;
            let message = object.status.as_ref().and_then(|status| status.message.clone());
            last = format!("{}: {}", phase(&object), message.unwrap_or_default());
            if matches!(phase(&object), "Completed" | "Failed") {
                return Ok(object);
            }
        }
        bail!("the watch of {name} ended")
    };
    let ended = tokio::time::timeout(patience, work).await;
    ended.with_context(|| format!("{name} did not end in {} s; {last}", patience.as_secs()))?
}

/// Deletes a migration and waits until it is gone.
pub async fn delete(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let api = migrations(cluster);
    match api.delete(name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        other => other?,
    };
    let what = format!("migration {name} to be gone");
    wait_for(&what, Duration::from_mins(1), async || {
        Ok(api.get_opt(name).await?.is_none().then_some(()))
    })
    .await
}

/// Deletes a migration and takes its finalizer away, as somebody does who will not wait.
pub async fn remove_by_force(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let api = migrations(cluster);
    api.delete(name, &DeleteParams::default()).await?;
    let patch = Patch::Merge(json!({ "metadata": { "finalizers": [] } }));
    match api.patch(name, &PatchParams::default(), &patch).await {
        // It had come to its end.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => Ok(other.map(drop)?),
    }
}

/// Deletes all migrations.
pub async fn delete_all(cluster: &Cluster) -> anyhow::Result<()> {
    let list = migrations(cluster).list(&kube::api::ListParams::default()).await;
    match list {
        // The CRD is not there yet.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        list => {
            for object in list? {
                delete(cluster, &object.name_any()).await?;
            }
            Ok(())
        }
    }
}
