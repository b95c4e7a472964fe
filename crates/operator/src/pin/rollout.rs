//! A Deployment and its ReplicaSets as JSON, and whether a change of the template would restart anybody.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kube::api::{ApiResource, DynamicObject};
use kube::{Api, Client, Resource};
use serde_json::Value;
use shadow_protocol::observation::{Rollout, Trouble};

use crate::act::kube_trouble;
use crate::target_pod::OWNERS_LABEL;

/// The Deployment `name`, as far as it says whether its template can be changed and nobody restarts.
pub async fn rollout_of(
    client: &Client,
    namespace: &str,
    name: &str,
    replica_set: &str,
) -> Result<Option<Rollout>, Trouble> {
    let Some(deployment) = read::<Deployment>(client, namespace, name).await? else {
        return Ok(None);
    };
    let set = read::<ReplicaSet>(client, namespace, replica_set).await?;
    Ok(Some(rollout(&deployment, set.as_ref())))
}

pub(super) fn api<K: Resource<DynamicType = ()>>(
    client: &Client,
    namespace: &str,
) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), namespace, &ApiResource::erase::<K>(&()))
}

pub(super) async fn read<K: Resource<DynamicType = ()>>(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<DynamicObject>, Trouble> {
    let found = api::<K>(client, namespace).get_opt(name).await;
    found.map_err(|error| kube_trouble(&format!("read {}", K::kind(&())), name, &error))
}

pub(super) fn rollout(deployment: &DynamicObject, set: Option<&DynamicObject>) -> Rollout {
    let (spec, status) = (&deployment.data["spec"], &deployment.data["status"]);
    let count = |value: &Value| value.as_i64().unwrap_or(0);
    let same = set.is_some_and(|set| same_template(&template(set), &spec["template"]));
    let all = count(&status["replicas"]) == count(&status["updatedReplicas"]);
    Rollout {
        replicas: u32::try_from(spec["replicas"].as_i64().unwrap_or(1)).unwrap_or(0),
        paused: spec["paused"] == true,
        complete: is_observed(deployment) && same && all,
    }
}

/// Its controller has seen it as it is.
pub(super) fn is_observed(deployment: &DynamicObject) -> bool {
    let seen = deployment.data["status"]["observedGeneration"].as_i64();
    seen.unwrap_or(0) >= deployment.metadata.generation.unwrap_or(0)
}

/// A ReplicaSet's template as its Deployment has it.
pub(super) fn template(set: &DynamicObject) -> Value {
    let mut template = set.data["spec"]["template"].clone();
    if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(OWNERS_LABEL);
    }
    template
}

/// Some servers write a creation time of null.
pub(super) fn same_template(a: &Value, b: &Value) -> bool {
    let plain = |template: &Value| {
        let mut template = template.clone();
        let metadata = template.get_mut("metadata").and_then(Value::as_object_mut);
        metadata.and_then(|metadata| metadata.remove("creationTimestamp"));
        template
    };
    plain(a) == plain(b)
}
