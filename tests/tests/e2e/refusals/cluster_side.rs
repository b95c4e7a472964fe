//! What is named in the migration: nodes, queue, broker, Secret, registry.

use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use shadow_e2e::cluster::wait_for;
use shadow_e2e::in_lab;
use shadow_e2e::workload::Workload;
use shadow_lab::Lab;

use super::{Untouched, broker_url};
use crate::alone;

/// A migration that must fail: the reason, words of its sentence, and what is wrong with it.
struct Bad(&'static str, &'static str, fn(&mut Value));

const BAD: [Bad; 13] = [
    Bad("SourceNotFound", "source pod nobody does not exist", |m| {
        m["spec"]["sourcePod"] = json!("nobody");
    }),
    Bad("ContainerNotFound", "no container nope; it has consumer", |m| {
        m["spec"]["containerName"] = json!("nope");
    }),
    Bad("TargetNodeNotFound", "worker-9 does not exist", |m| {
        m["spec"]["targetNode"] = json!("worker-9");
    }),
    Bad("QueueNotFound", "queue no.such.queue does not exist", |m| {
        m["spec"]["messageQueueConfig"]["queueName"] = json!("no.such.queue");
    }),
    Bad("ExchangeNotBound", "not bound to exchange other; it is bound to app.fanout", |m| {
        m["spec"]["messageQueueConfig"]["exchangeName"] = json!("other");
    }),
    Bad("BrokerAccessRefused", "rabbitmq.default.svc", |m| {
        broker_url(m, "amqp://nobody:wrong-password@rabbitmq.default.svc:5672/%2f");
    }),
    Bad("BrokerAccessRefused", "rabbitmq.default.svc", |m| {
        m["spec"]["messageQueueConfig"]["brokerSecretRef"]["name"] = json!("broker-wrong");
    }),
    Bad("BrokerUnreachable", "rabbitmq.default.svc:5673", |m| {
        broker_url(m, "amqp://rabbitmq.default.svc:5673/%2f");
    }),
    Bad("BrokerUnreachable", "rabbitmq.default.svc:5672", |m| {
        broker_url(m, "amqps://nobody:wrong-password@rabbitmq.default.svc:5672/%2f");
    }),
    Bad("BrokerConfigInvalid", "no-such-secret", |m| {
        m["spec"]["messageQueueConfig"]["brokerSecretRef"]["name"] = json!("no-such-secret");
    }),
    Bad("BrokerConfigInvalid", "no-such-key", |m| {
        m["spec"]["messageQueueConfig"]["brokerSecretRef"]["key"] = json!("no-such-key");
    }),
    Bad("RegistryUnreachable", "registry.ms2m-system.svc:5999", |m| {
        m["spec"]["checkpointImageRepository"] = json!("registry.ms2m-system.svc:5999/checkpoints");
    }),
    Bad("RegistryUnreachable", "no-such-host.invalid", |m| {
        m["spec"]["checkpointImageRepository"] = json!("no-such-host.invalid:5000/checkpoints");
    }),
];

/// A Secret like the workload's, with another password.
fn wrong_secret() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": { "name": "broker-wrong", "namespace": "default" },
        "stringData": { "url": "amqp://shadow:wrong-password@rabbitmq.default.svc:5672/%2f" },
    })
}

#[test]
fn bad_input_is_refused_with_a_reason_and_changes_nothing() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let world = Untouched::deployed(&Workload::default()).await?;
        world.cluster.apply_object(wrong_secret()).await?;
        for Bad(reason, words, spoil) in &BAD {
            let mut manifest = world.manifest();
            spoil(&mut manifest);
            world.refuses(manifest, reason, words).await?;
        }
        world.cluster.kubectl(&["delete", "secret", "broker-wrong"], "")?;
        let mut manifest = world.manifest();
        manifest["spec"]["targetNode"] = json!(world.nodes.0);
        world.refuses(manifest, "TargetIsSource", "name another").await?;
        unschedulable(&world).await?;
        locked_registry(&world).await
    })
}

async fn unschedulable(world: &Untouched) -> anyhow::Result<()> {
    let node = &world.nodes.1;
    world.cluster.kubectl(&["cordon", node], "")?;
    let words = format!("target node {node} takes no new pods; uncordon it");
    let refused = world.refuses(world.manifest(), "TargetNodeUnschedulable", &words).await;
    world.cluster.kubectl(&["uncordon", node], "")?;
    refused
}

/// A second registry, for which one needs a password.
struct LockedRegistry<'a>(&'a Lab, Child);

const PORT: &str = "5055";

impl<'a> LockedRegistry<'a> {
    fn start(lab: &'a Lab) -> anyhow::Result<Self> {
        // Nobody knows the password of this hash.
        let script = "printf 'somebody:$2y$05$abcdefghijklmnopqrstuuFvIpJ0vRjS9b4mL4cV6PDDLyZPnXy2G\\n' \
                      > /run/e2e-htpasswd && echo $$ > /run/e2e-registry.pid && exec docker-registry serve /etc/docker/registry/config.yml";
        let addr = format!("REGISTRY_HTTP_ADDR=:{PORT}");
        let argv = [
            "env",
            &addr,
            "REGISTRY_AUTH_HTPASSWD_REALM=e2e",
            "REGISTRY_AUTH_HTPASSWD_PATH=/run/e2e-htpasswd",
            "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY=/run/e2e-registry",
            "sh",
            "-c",
            script,
        ];
        let mut command = lab.command("control", &argv)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(lab, command.spawn().context("start a registry")?))
    }
}

impl Drop for LockedRegistry<'_> {
    fn drop(&mut self) {
        // The child only entered the machine; the registry is a process of its own there.
        let end = "kill $(cat /run/e2e-registry.pid); rm -rf /run/e2e-registry /run/e2e-*";
        if let Err(error) = self.0.exec("control", &["sh", "-c", end]) {
            eprintln!("the locked registry lives on: {error}");
        }
        let _ = self.1.wait();
    }
}

async fn locked_registry(world: &Untouched) -> anyhow::Result<()> {
    let lab = &world.cluster.lab;
    let _registry = LockedRegistry::start(lab)?;
    let host = lab.rabbitmq().host;
    let address = format!("{host}:{PORT}");
    wait_for("the locked registry", Duration::from_secs(20), async || {
        Ok(tokio::net::TcpStream::connect(&address).await.ok().map(drop))
    })
    .await?;
    let mut manifest = world.manifest();
    manifest["spec"]["checkpointImageRepository"] = json!(format!("{address}/checkpoints"));
    let folder = "/var/lib/kubelet/checkpoints";
    // Only the transfer asks it to take something.
    let words = format!("registry {address} can't be used with these credentials");
    let failed = world.ends(manifest, "TransferFailed", &words, "; everything was undone").await;
    // Known gap: an archive that was not sent stays on its node.
    lab.exec(&world.nodes.0, &["find", folder, "-name", "checkpoint-consumer-*", "-delete"])?;
    failed?;
    world.goes_on().await
}
