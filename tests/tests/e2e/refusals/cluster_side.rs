//! What is named in the migration: nodes, queue, broker, Secret, registry.

use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use shadow_e2e::cluster::wait_for;
use shadow_e2e::in_lab;
use shadow_e2e::migrate::{self, phase};
use shadow_e2e::workload::Workload;
use shadow_lab::Lab;

use super::{Untouched, broker_url};
use crate::alone;

/// A migration that must fail: the reason, words of its sentence, and what is wrong with it.
struct Bad(&'static str, &'static str, fn(&mut Value));

const BAD: [Bad; 12] = [
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
    Bad("BrokerConfigInvalid", "does not speak TLS at rabbitmq.default.svc:5672", |m| {
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
        // It is tried again and again: the others are refused meanwhile.
        let mut manifest = world.manifest();
        manifest["metadata"]["name"] = json!("move-nowhere");
        broker_url(&mut manifest, "amqp://rabbitmq.default.svc:5673/%2f");
        let words = "rabbitmq.default.svc:5673";
        let nowhere = world.ends(manifest, "BrokerUnreachable", words, "; nothing was changed");
        let others = async {
            for Bad(reason, words, spoil) in &BAD {
                let mut manifest = world.manifest();
                spoil(&mut manifest);
                world.refuses(manifest, reason, words).await?;
            }
            anyhow::Ok(())
        };
        let (nowhere, others) = tokio::join!(nowhere, others);
        others?;
        nowhere?;
        world.goes_on().await.context("after BrokerUnreachable")?;
        world.cluster.kubectl(&["delete", "secret", "broker-wrong"], "")?;
        let mut manifest = world.manifest();
        manifest["spec"]["targetNode"] = json!(world.nodes.0);
        world.refuses(manifest, "TargetIsSource", "name another").await?;
        unschedulable(&world).await?;
        locked_registry(&world).await?;
        registry_locked_meanwhile(&world).await
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

/// A second registry, open or for those with a password.
struct OwnRegistry<'a>(&'a Lab, Child);

const PORT: &str = "5055";
const OPEN: &str = "";
/// Nobody knows the password of the hash.
const LOCKED: &str = "auth: {htpasswd: {realm: e2e, path: /run/e2e-htpasswd}}";

impl<'a> OwnRegistry<'a> {
    /// Starts it and waits until it listens.
    async fn start(lab: &'a Lab, doors: &str) -> anyhow::Result<Self> {
        let script = format!(
            "printf 'somebody:$2y$05$abcdefghijklmnopqrstuuFvIpJ0vRjS9b4mL4cV6PDDLyZPnXy2G\\n' \
             > /run/e2e-htpasswd && printf '%s\\n' 'version: 0.1' 'http: {{addr: \":{PORT}\"}}' \
             'storage: {{filesystem: {{rootdirectory: /run/e2e-registry}}}}' '{doors}' \
             > /run/e2e-registry.yml && echo $$ > /run/e2e-registry.pid \
             && exec docker-registry serve /run/e2e-registry.yml"
        );
        let mut command = lab.command("control", &["sh", "-c", &script])?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let registry = Self(lab, command.spawn().context("start a registry")?);
        let address = registry.address();
        wait_for("the second registry", Duration::from_secs(20), async || {
            Ok(tokio::net::TcpStream::connect(&address).await.ok().map(drop))
        })
        .await?;
        Ok(registry)
    }

    fn address(&self) -> String {
        format!("{}:{PORT}", self.0.rabbitmq().host)
    }
}

impl Drop for OwnRegistry<'_> {
    fn drop(&mut self) {
        // The child only entered the machine; the registry is a process of its own there.
        let end = "kill $(cat /run/e2e-registry.pid); rm -rf /run/e2e-registry /run/e2e-*";
        if let Err(error) = self.0.exec("control", &["sh", "-c", end]) {
            eprintln!("the second registry lives on: {error}");
        }
        let _ = self.1.wait();
    }
}

fn to_registry(world: &Untouched, registry: &OwnRegistry) -> (Value, String) {
    let address = registry.address();
    let mut manifest = world.manifest();
    manifest["spec"]["checkpointImageRepository"] = json!(format!("{address}/checkpoints"));
    (manifest, format!("registry {address} can't be used with these credentials"))
}

async fn locked_registry(world: &Untouched) -> anyhow::Result<()> {
    let registry = OwnRegistry::start(&world.cluster.lab, LOCKED).await?;
    let (manifest, words) = to_registry(world, &registry);
    world.refuses(manifest, "RegistryRefused", &words).await
}

/// It takes the transfer in the preflight, but no longer when there is a checkpoint: then this must
/// not stay on its node.
async fn registry_locked_meanwhile(world: &Untouched) -> anyhow::Result<()> {
    let lab = &world.cluster.lab;
    let open = OwnRegistry::start(lab, OPEN).await?;
    let (manifest, words) = to_registry(world, &open);
    let name = manifest["metadata"]["name"].as_str().context("a name")?.to_owned();
    let failed = world.ends(manifest, "TransferFailed", &words, "; everything was undone");
    let locked = async {
        let all = migrate::migrations(&world.cluster);
        wait_for("the preflight to be over", Duration::from_secs(30), async || {
            Ok((phase(&all.get(&name).await?) == "Checkpointing").then_some(()))
        })
        .await?;
        drop(open);
        OwnRegistry::start(lab, LOCKED).await
    };
    let (failed, locked) = tokio::join!(failed, locked);
    locked?;
    failed?;
    // It looks for archives too.
    world.goes_on().await
}
