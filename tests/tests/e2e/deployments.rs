//! Deployments that are more than a template and a number.

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use shadow_e2e::cluster::{Cluster, wait_for};
use shadow_e2e::migrate::{migrations, phase};
use shadow_e2e::workload::{CLAIM, Workload};
use shadow_e2e::{in_lab, scenario};
use std::time::Duration;

use crate::{
    alone, assert_clean, assert_nothing_left, assert_owned, deployed, deployment, message, moved,
};

const REVISION: &str = "deployment.kubernetes.io/revision";

/// Where its template says that its pods must be.
async fn pinned_to(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let spec = deployment(cluster).await?.spec.context("a spec")?;
    let affinity = spec.template.spec.and_then(|spec| spec.affinity?.node_affinity);
    let required = affinity.and_then(|it| it.required_during_scheduling_ignored_during_execution);
    let terms = required.into_iter().flat_map(|required| required.node_selector_terms);
    let all = terms.flat_map(|term| term.match_expressions.unwrap_or_default());
    Ok(all.flat_map(|it| it.values.unwrap_or_default()).collect())
}

/// What the migration has said in an event of this kind: its type and its note.
async fn said(
    cluster: &Cluster,
    migration: &str,
    reason: &str,
) -> anyhow::Result<(String, String)> {
    let api: Api<Event> = Api::namespaced(cluster.client.clone(), "default");
    wait_for(&format!("an event {reason}"), Duration::from_secs(10), async || {
        let all = api.list(&ListParams::default()).await?;
        let of_it = |event: &&Event| {
            let about = event.regarding.as_ref().and_then(|about| about.name.as_deref());
            about == Some(migration) && event.reason.as_deref() == Some(reason)
        };
        let found = all.iter().find(of_it);
        Ok(found
            .map(|it| (it.type_.clone().unwrap_or_default(), it.note.clone().unwrap_or_default())))
    })
    .await
}

#[test]
fn a_pinned_deployment_moves_back_and_forth() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let cluster = deployed(&Workload::default()).await?;
        let first = cluster.pod_of("consumer").await?.name_any();
        let mut last = None;
        for time in 0..5 {
            let done = moved(&cluster).await?;
            assert_owned(&cluster, &done.nodes.1).await?;
            let pinned = pinned_to(&cluster).await?;
            ensure!(pinned == [done.nodes.1.as_str()], "pinned to {pinned:?}");
            let pod = cluster.pod_of("consumer").await?;
            let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
            ensure!(affinity.is_none(), "the copy may go anywhere next: {affinity:?}");
            let name = if time % 2 == 0 { format!("{first}-shadow") } else { first.clone() };
            ensure!(pod.name_any() == name, "called {}, not {name}", pod.name_any());
            assert_nothing_left(&cluster).await?;
            last = Some(done);
        }
        let last = last.context("moved")?;
        assert_clean(&scenario::settle(&cluster, &last).await?);
        // One that takes its place later starts there, too.
        let moved = cluster.pod_of("consumer").await?.name_any();
        cluster.kubectl(&["delete", "pod", &moved, "--grace-period=1"], "")?;
        wait_for("a fresh pod", Duration::from_mins(1), async || {
            let pods = cluster.pods_of("consumer").await?;
            Ok((pods.len() == 1 && pods[0].name_any() != moved).then_some(()))
        })
        .await?;
        assert_owned(&cluster, &last.nodes.1).await
    })
}

#[test]
fn the_other_replicas_are_not_restarted_to_pin_one() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let cluster =
            deployed(&Workload { replicas: 3, probe: false, ..Workload::default() }).await?;
        let before = cluster.pods_of("consumer").await?;
        let source = before.first().context("a consumer")?;
        let asked = json!({ "pinToTargetNode": true });
        let done = scenario::move_pod(&cluster, source, &asked, |_| {}).await?;
        ensure!(phase(&done.object) == "Completed", "ended {}", message(&done.object));
        let (type_, note) = said(&cluster, &done.object.name_any(), "NotPinned").await?;
        ensure!(type_ == "Warning" && note.contains("3 replicas"), "{type_}: {note}");
        scenario::others_untouched(&cluster, &before, &source.name_any()).await?;
        cluster.wait_deployment("default", "consumer").await?;
        ensure!(pinned_to(&cluster).await?.is_empty(), "the template is as it was");
        let revision = deployment(&cluster).await?.annotations().get(REVISION).cloned();
        ensure!(revision.as_deref() == Some("1"), "revision is {revision:?}");
        assert_nothing_left(&cluster).await
    })
}

/// An autoscaler that may want one to three pods, and a budget that lets none be evicted.
fn guards() -> [Value; 2] {
    let deployment = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "name": "consumer" });
    let load = json!({ "type": "Utilization", "averageUtilization": 90 });
    [
        json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": { "name": "consumer" },
            "spec": {
                "scaleTargetRef": deployment, "minReplicas": 1, "maxReplicas": 3,
                "metrics": [{ "type": "Resource", "resource": { "name": "cpu", "target": load } }],
            },
        }),
        json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
            "metadata": { "name": "consumer" },
            "spec": {
                "minAvailable": 1, "selector": { "matchLabels": { "app": "consumer" } },
            },
        }),
    ]
}

#[test]
fn neither_recreate_nor_pause_nor_autoscaler_nor_budget_are_in_the_way() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let cluster = deployed(&Workload::default()).await?;
        for guard in guards() {
            cluster.apply_object(guard).await?;
        }
        let patched = |spec: Value| {
            let patch = json!({ "spec": spec }).to_string();
            cluster.kubectl(&["patch", "deployment", "consumer", "--type=merge", "-p", &patch], "")
        };
        patched(json!({ "strategy": { "type": "Recreate", "rollingUpdate": null } }))?;
        let done = moved(&cluster).await?;
        let there = done.nodes.1.clone();
        assert_owned(&cluster, &there).await?;
        ensure!(pinned_to(&cluster).await? == [there.as_str()], "Recreate does not matter");
        assert_nothing_left(&cluster).await?;
        patched(json!({ "paused": true }))?;
        let done = moved(&cluster).await?;
        assert_owned(&cluster, &done.nodes.1).await?;
        assert_nothing_left(&cluster).await?;
        ensure!(pinned_to(&cluster).await? == [there.as_str()], "its template is its user's");
        let (type_, note) = said(&cluster, &done.object.name_any(), "NotPinned").await?;
        ensure!(type_ == "Normal" && note.contains("paused"), "{type_}: {note}");
        let spec = deployment(&cluster).await?.spec.context("a spec")?;
        ensure!(spec.paused == Some(true), "it is still paused");
        cluster.kubectl(&["delete", "hpa,pdb", "consumer"], "")?;
        assert_clean(&scenario::settle(&cluster, &done).await?);
        Ok(())
    })
}

/// Names of the containers that run: sidecars first, and each kind in order.
fn running(pod: &Pod) -> Vec<&str> {
    let status = pod.status.as_ref();
    let all = status.into_iter().flat_map(|status| {
        let sidecars = status.init_container_statuses.iter().flatten();
        sidecars.chain(status.container_statuses.iter().flatten())
    });
    let runs = all.filter(|it| it.state.as_ref().is_some_and(|state| state.running.is_some()));
    runs.map(|it| it.name.as_str()).collect()
}

#[test]
fn the_whole_pod_moves_back_and_forth() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let workload =
            Workload { whole: true, claim: Some("ReadWriteMany"), ..Workload::default() };
        let cluster = deployed(&workload).await?;
        let mut last = None;
        for _ in 0..5 {
            let done = moved(&cluster).await?;
            assert_owned(&cluster, &done.nodes.1).await?;
            let pod = cluster.pod_of("consumer").await?;
            ensure!(running(&pod) == ["helper", "beside", "consumer"], "{:?}", running(&pod));
            let look = ["exec", &pod.name_any(), "-c", "beside", "--", "/usr/bin/python3", "-c"];
            let files = "import os; print(os.listdir('/scratch'))";
            let there = cluster.kubectl(&[&look[..], &[files]].concat(), "")?;
            ensure!(there.trim() == "[]", "the init container has run again: {there}");
            assert_nothing_left(&cluster).await?;
            last = Some(done);
        }
        assert_clean(&scenario::settle(&cluster, &last.context("moved")?).await?);
        Ok(())
    })
}

#[test]
fn a_volume_for_one_node_keeps_a_shadow_away() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let claim = Some("ReadWriteOnce");
        let cluster = deployed(&Workload { claim, probe: false, ..Workload::default() }).await?;
        let done = scenario::move_consumer(&cluster, None, |_| {}).await?;
        ensure!(phase(&done.object) == "Failed", "ended {}", phase(&done.object));
        let why = message(&done.object);
        ensure!(why.contains(CLAIM) && why.contains("one node at a time"), "{why}");
        ensure!(cluster.pods_of("consumer").await?.len() == 1, "nothing was touched");
        assert_nothing_left(&cluster).await
    })
}

#[test]
fn a_finished_migration_is_deleted_after_its_time() -> anyhow::Result<()> {
    let _alone = alone();
    in_lab(async {
        let cluster = deployed(&Workload::default()).await?;
        let source = cluster.pod_of("consumer").await?;
        let asked = json!({ "ttlSecondsAfterFinished": 2 });
        let done = scenario::move_pod(&cluster, &source, &asked, |_| {}).await?;
        let name = done.object.name_any();
        wait_for("the migration to be deleted", Duration::from_secs(20), async || {
            Ok(migrations(&cluster).get_opt(&name).await?.is_none().then_some(()))
        })
        .await?;
        assert_owned(&cluster, &done.nodes.1).await?;
        assert_nothing_left(&cluster).await?;
        assert_clean(&scenario::settle(&cluster, &done).await?);
        Ok(())
    })
}
