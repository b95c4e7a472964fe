//! Deployments that are more than a template and a number.

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::{Value, json};
use shadow_e2e::cluster::wait_for;
use shadow_e2e::migrate::{migrations, phase};
use shadow_e2e::workload::{CLAIM, Workload};
use shadow_e2e::{in_lab, scenario};
use std::time::Duration;

use crate::{alone, assert_clean, assert_nothing_left, assert_owned, deployed, message, moved};

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
        let mut last = None;
        for spec in [
            json!({ "strategy": { "type": "Recreate", "rollingUpdate": null } }),
            json!({ "paused": true }),
        ] {
            let patch = json!({ "spec": spec }).to_string();
            let patched = ["patch", "deployment", "consumer", "--type=merge", "-p", &patch];
            cluster.kubectl(&patched, "")?;
            let done = moved(&cluster).await?;
            assert_owned(&cluster, &done.nodes.1).await?;
            assert_nothing_left(&cluster).await?;
            last = Some(done);
        }
        cluster.kubectl(&["delete", "hpa,pdb", "consumer"], "")?;
        assert_clean(&scenario::settle(&cluster, &last.context("moved")?).await?);
        Ok(())
    })
}

/// Names of the containers that run, in order.
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
            ensure!(running(&pod) == ["helper", "consumer", "beside"], "{:?}", running(&pod));
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
