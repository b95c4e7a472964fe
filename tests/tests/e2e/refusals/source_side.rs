//! What is wrong with the source: its pod, or the way it consumes.

use std::time::Duration;

use anyhow::{Context, ensure};
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};
use shadow_e2e::cluster::{Cluster, wait_for};
use shadow_e2e::migrate::{self, phase};
use shadow_e2e::workload::Workload;
use shadow_e2e::{broker, http, in_lab, scenario};

use super::Untouched;
use crate::{alone, assert_clean, assert_nothing_left, message};

/// A pod next to the consumer, which no Service and no Deployment counts as theirs.
async fn beside(
    world: &Untouched,
    name: &str,
    edit: impl Fn(&mut Value),
    reached: impl Fn(&Value) -> bool,
) -> anyhow::Result<()> {
    let change = |pod: &mut Value| {
        pod["metadata"] = json!({ "name": name, "namespace": "default" });
        edit(pod);
    };
    world.cluster.apply("eval/workloads/consumer-pod.yaml", change).await?;
    let pods = world.cluster.pods();
    wait_for(&format!("pod {name} to be as wanted"), Duration::from_mins(1), async || {
        let status = serde_json::to_value(pods.get(name).await?.status)?;
        Ok(reached(&status).then_some(()))
    })
    .await
}

async fn remove(world: &Untouched, name: &str) -> anyhow::Result<()> {
    let pods = world.cluster.pods();
    pods.delete(name, &DeleteParams::default().grace_period(0)).await?;
    wait_for(&format!("pod {name} to be gone"), Duration::from_secs(30), async || {
        Ok(pods.get_opt(name).await?.is_none().then_some(()))
    })
    .await
}

async fn refuses_pod(
    world: &Untouched,
    name: &str,
    container: &str,
    reason: &str,
    words: &str,
) -> anyhow::Result<()> {
    let mut manifest = world.manifest();
    manifest["spec"]["sourcePod"] = json!(name);
    manifest["spec"]["containerName"] = json!(container);
    world.refuses(manifest, reason, words).await?;
    remove(world, name).await
}

const IDLE: &str = "import time; time.sleep(600)";

fn python(code: &str) -> Value {
    json!(["/usr/bin/python3", "-c", code])
}

#[test]
fn a_source_that_does_not_run_is_refused() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let world = Untouched::deployed(&Workload::default()).await?;
        let nowhere = |pod: &mut Value| pod["spec"]["nodeSelector"] = json!({ "is": "nowhere" });
        beside(&world, "pending", nowhere, |status| {
            status["conditions"][0]["reason"] == "Unschedulable"
        })
        .await?;
        let words = "source pod pending is not running";
        refuses_pod(&world, "pending", "consumer", "SourceNotRunning", words).await?;

        let ended = |pod: &mut Value| {
            pod["spec"]["restartPolicy"] = json!("Never");
            pod["spec"]["containers"][0]["command"] = python("");
        };
        beside(&world, "ended", ended, |status| status["phase"] == "Succeeded").await?;
        let words = "source pod ended is not running";
        refuses_pod(&world, "ended", "consumer", "SourceNotRunning", words).await?;

        let half = |pod: &mut Value| {
            pod["spec"]["restartPolicy"] = json!("Never");
            let containers = &mut pod["spec"]["containers"];
            containers[0]["command"] = python(IDLE);
            containers[0].as_object_mut().map(|container| container.remove("readinessProbe"));
            let image = containers[0]["image"].clone();
            let second = json!({ "name": "second", "image": image, "command": python("") });
            if let Some(list) = containers.as_array_mut() {
                list.push(second);
            }
        };
        beside(&world, "half", half, |status| {
            let containers = status["containerStatuses"].as_array();
            let state = |name: &str, state: &str| {
                containers.is_some_and(|list| {
                    list.iter().any(|c| c["name"] == name && c["state"][state].is_object())
                })
            };
            state("consumer", "running") && state("second", "terminated")
        })
        .await?;
        let words = "container second of source pod half is not running";
        refuses_pod(&world, "half", "second", "ContainerNotRunning", words).await
    })
}

#[test]
fn a_queue_with_a_second_consumer_is_refused() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let mut world = Untouched::deployed(&Workload::default()).await?;
        beside(&world, "rival", |_| {}, |status| status["phase"] == "Running").await?;
        wait_for("the rival to consume", Duration::from_secs(30), async || {
            let pod = world.cluster.pods().get("rival").await?;
            let ledger = http::get(&format!("{}/ledger", Cluster::url(&pod)?)).await?;
            Ok((ledger["queue"] == "app.events").then_some(()))
        })
        .await?;
        world.look_again().await?;
        let words = "queue app.events has 2 consumers";
        let refused = world.refuses(world.manifest(), "SecondConsumer", words).await;
        remove(&world, "rival").await?;
        broker::delete_queue(&world.cluster, "ms2m.control.rival").await?;
        refused
    })
}

#[test]
fn a_consumer_without_acknowledgements_is_refused() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let workload = Workload { habit: Some("AUTO_ACK"), ..Workload::default() };
        let world = Untouched::deployed(&workload).await?;
        world.refuses(world.manifest(), "AutoAck", "consume with manual acknowledgements").await
    })
}

#[test]
fn an_exclusive_queue_is_refused() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let workload = Workload { habit: Some("EXCLUSIVE_QUEUE"), ..Workload::default() };
        let world = Untouched::deployed(&workload).await?;
        let words = "queue app.events is exclusive";
        world.refuses(world.manifest(), "QueueNotSupported", words).await
    })
}

#[test]
fn a_second_migration_of_the_same_pod_waits_for_the_first_and_is_refused() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let world = Untouched::deployed(&Workload::default()).await?;
        let cluster = &world.cluster;
        let second = async {
            let first = wait_for("the first to be under way", Duration::from_mins(1), async || {
                let all = migrate::migrations(cluster).list(&ListParams::default()).await?;
                Ok(all.items.into_iter().find(|one| phase(one) == "Checkpointing"))
            })
            .await?;
            let first = first.name_any();
            let manifest = world.manifest();
            let name = manifest["metadata"]["name"].as_str().context("a name")?.to_owned();
            migrate::create(cluster, manifest).await?;
            let words = format!("its turn: migration default/{first} moves the same pod");
            let mut waited = false;
            let ended = migrate::follow(cluster, &name, Duration::from_mins(5), async |seen| {
                waited |= message(seen).contains(&words);
                Ok(())
            })
            .await?;
            anyhow::Ok((ended, waited))
        };
        let (done, second) = tokio::join!(scenario::move_consumer(cluster, None, |_| {}), second);
        let (done, (second, waited)) = (done?, second?);
        ensure!(waited, "the second says that it waits for the first");
        let text = message(&second);
        ensure!(text.starts_with("SourceNotFound: "), "expected SourceNotFound, got: {text}");
        ensure!(phase(&done.object) == "Completed", "ended {}", message(&done.object));
        assert_clean(&scenario::settle(cluster, &done).await?);
        assert_nothing_left(cluster).await
    })
}
