//! The lab's broker through its management API.

use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use crate::cluster::{Cluster, wait_for};
use crate::http;

const VHOST: &str = "%2F";

fn url(cluster: &Cluster, path: &str) -> String {
    let broker = cluster.lab.rabbitmq();
    format!("http://{}:{}/api/{path}", broker.host, broker.management_port)
}

async fn ask(cluster: &Cluster, method: &str, path: &str) -> anyhow::Result<Value> {
    let broker = cluster.lab.rabbitmq();
    http::ask(method, &url(cluster, path), Some((&broker.user, &broker.password))).await
}

async fn names(cluster: &Cluster, kind: &str) -> anyhow::Result<Vec<String>> {
    let list = ask(cluster, "GET", &format!("{kind}/{VHOST}?columns=name")).await?;
    let list = list.as_array().cloned().unwrap_or_default();
    Ok(list.iter().filter_map(|one| one["name"].as_str()).map(str::to_owned).collect())
}

/// Names of all queues, and of all exchanges that aren't the broker's own.
pub async fn objects(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let mut all = names(cluster, "queues").await?;
    all.extend(names(cluster, "exchanges").await?.into_iter().filter(|n| !n.starts_with("amq.")));
    all.retain(|name| !name.is_empty());
    all.sort();
    Ok(all)
}

/// Deletes every queue, and every exchange that isn't the broker's own.
pub async fn clear(cluster: &Cluster) -> anyhow::Result<()> {
    for kind in ["queues", "exchanges"] {
        for name in names(cluster, kind).await? {
            // A lock goes with its holder.
            if name.is_empty() || name.starts_with("amq.") || name.starts_with("ms2m.lock.") {
                continue;
            }
            ask(cluster, "DELETE", &format!("{kind}/{VHOST}/{name}")).await.context(name)?;
        }
    }
    Ok(())
}

/// Deletes one queue.
pub async fn delete_queue(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let path = format!("queues/{VHOST}/{name}");
    ask(cluster, "DELETE", &path).await.with_context(|| format!("delete queue {name}"))?;
    Ok(())
}

/// Drops what is ready in a queue.
pub async fn purge(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let path = format!("queues/{VHOST}/{name}/contents");
    ask(cluster, "DELETE", &path).await.with_context(|| format!("purge queue {name}"))?;
    Ok(())
}

/// Waits until `messages` wait in a queue.
pub async fn wait_backlog(cluster: &Cluster, queue: &str, messages: u64) -> anyhow::Result<()> {
    let path = format!("queues/{VHOST}/{queue}?columns=messages_ready");
    wait_for("a backlog", Duration::from_mins(2), async || {
        let found = ask(cluster, "GET", &path).await?;
        Ok(found["messages_ready"].as_u64().filter(|ready| *ready >= messages).map(drop))
    })
    .await
}

/// The broker's version.
pub async fn version(cluster: &Cluster) -> anyhow::Result<String> {
    let overview = ask(cluster, "GET", "overview").await?;
    Ok(overview["rabbitmq_version"].as_str().unwrap_or_default().to_owned())
}
