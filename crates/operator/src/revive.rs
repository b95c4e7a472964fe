//! A moved bare pod that crashes has nobody to start it again: its kubelet must not, because the
//! image is the checkpoint (`docs/adr/0001-restored-at-most-once.md`). So the operator does what the
//! kubelet would have done without a migration: a fresh start from the workload's own image. An
//! owner does that by itself, once it sees that its pod has ended.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};

use crate::cluster::Cluster;
use crate::observe::chain;
use crate::target_pod::{ANNOTATION_REPLACES, Successor, successor};

/// After a failure. A success is seen by the watch.
const RETRY: Duration = Duration::from_secs(2);

/// Watches for moved pods whose process has ended, for ever.
pub async fn keep(cluster: Cluster) {
    let mut bell = cluster.bell();
    loop {
        bell.borrow_and_update();
        let mut failed = false;
        for pod in cluster.pods.state() {
            let Some(successor) = successor(&pod) else { continue };
            let name = pod.name_any();
            match replace(&cluster, &pod, successor).await {
                Ok(()) => tracing::info!(pod = name, "a moved pod had ended: it starts afresh"),
                Err(error) => {
                    tracing::warn!(pod = name, error = chain(&error), "can't start it afresh");
                    failed = true;
                }
            }
        }
        if failed {
            tokio::time::sleep(RETRY).await;
        } else if bell.changed().await.is_err() {
            return;
        }
    }
}

/// The fresh pod comes first, under the other of the two names that a moved bare pod alternates
/// between: an operator that dies between the two calls must not leave the workload without a pod.
async fn replace(cluster: &Cluster, ended: &Pod, successor: Successor) -> Result<(), kube::Error> {
    let namespace = ended.namespace().unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &namespace);
    let uid = ended.uid().unwrap_or_default();
    if let Successor::Ours(fresh) = successor
        && let Err(error) = pods.create(&PostParams::default(), &fresh).await
    {
        let taken = matches!(&error, kube::Error::Api(status) if status.code == 409);
        if !taken || !replaces(&pods.get(&fresh.name_any()).await?, &uid) {
            return Err(error);
        }
    }
    // With the pod's own grace: another container of it may still run.
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: Some(uid), resource_version: None }),
        ..DeleteParams::default()
    };
    match pods.delete(&ended.name_any(), &params).await {
        // 404 and 409: it has gone already.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other.map(|_| ()),
    }
}

fn replaces(pod: &Pod, uid: &str) -> bool {
    pod.annotations().get(ANNOTATION_REPLACES).is_some_and(|replaced| replaced == uid)
}
