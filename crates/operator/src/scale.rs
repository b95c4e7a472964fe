//! A StatefulSet that its last pod leaves: it gets smaller by one, and back on the way back.

use k8s_openapi::api::apps::v1::StatefulSet;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use shadow_protocol::observation::{Owner, PodsOfSet, Trouble};

use crate::act::{Hands, Outcome, conflict, kube_trouble};

/// The StatefulSet `name`, as far as it says which of its pods goes when it gets smaller.
pub async fn pods_of_set(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<PodsOfSet>, Trouble> {
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
    let found = sets.get_opt(name).await;
    let found = found.map_err(|error| kube_trouble("read StatefulSet", name, &error))?;
    Ok(found.map(|set| pods(&set)))
}

fn pods(set: &StatefulSet) -> PodsOfSet {
    let spec = set.spec.clone().unwrap_or_default();
    let first = spec.ordinals.and_then(|ordinals| ordinals.start).unwrap_or(0);
    let retention = spec.persistent_volume_claim_retention_policy;
    let deletes = retention.and_then(|it| it.when_scaled).is_some_and(|it| it == "Delete");
    PodsOfSet {
        first: u32::try_from(first).unwrap_or(0),
        replicas: u32::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0),
        deletes_claims: deletes && !spec.volume_claim_templates.unwrap_or_default().is_empty(),
    }
}

impl Hands<'_> {
    /// From `from` pods to one less, unless it has that many already.
    pub(crate) async fn scale_down(&self, from: u32) -> Result<Outcome, Trouble> {
        let (namespace, name) = (self.namespace(), self.set()?);
        let less = from.saturating_sub(1);
        let Some(set) = self.sets().get_opt(name).await.map_err(|error| unread(name, &error))?
        else {
            // Its pods go with it.
            return Ok(Outcome::Done);
        };
        match pods(&set).replicas {
            now if now <= less => Ok(Outcome::Done),
            now if now == from => self.resize(&set, less).await,
            now => Err(Trouble {
                reason: "SetResized".to_owned(),
                message: format!(
                    "scale StatefulSet {namespace}/{name} down from {from} to {less}: somebody has \
                     scaled it to {now} meanwhile, so that its last pod is not the one that moves; \
                     scale it back to {from}"
                ),
                permanent: true,
            }),
        }
    }

    /// From one less to `to` pods, unless somebody wants another number.
    pub(crate) async fn scale_up(&self, to: u32) -> Result<Outcome, Trouble> {
        let name = self.set()?;
        let found = self.sets().get_opt(name).await.map_err(|error| unread(name, &error))?;
        match found {
            Some(set) if pods(&set).replicas + 1 == to => self.resize(&set, to).await,
            _ => Ok(Outcome::Done),
        }
    }

    fn set(&self) -> Result<&str, Trouble> {
        match &self.plan()?.owner {
            Owner::StatefulSet(name) => Ok(name),
            other => Err(Trouble {
                reason: "NoStatefulSet".to_owned(),
                message: format!("no StatefulSet to scale; the source's owner is {other:?}"),
                permanent: true,
            }),
        }
    }

    fn sets(&self) -> Api<StatefulSet> {
        Api::namespaced(self.cluster.client.clone(), &self.namespace())
    }

    /// Only as it was read: who has changed it since may mean another number.
    async fn resize(&self, set: &StatefulSet, to: u32) -> Result<Outcome, Trouble> {
        let name = set.name_any();
        let patch = Patch::Merge(json!({
            "metadata": { "uid": set.uid(), "resourceVersion": set.resource_version() },
            "spec": { "replicas": to },
        }));
        match self.sets().patch(&name, &PatchParams::default(), &patch).await {
            Ok(_) => Ok(Outcome::Done),
            Err(error) => {
                let trouble = kube_trouble("scale StatefulSet", &name, &error);
                Err(Trouble { permanent: trouble.permanent && !conflict(&error), ..trouble })
            }
        }
    }
}

fn unread(name: &str, error: &kube::Error) -> Trouble {
    kube_trouble("read StatefulSet", name, error)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn set(spec: &Value) -> PodsOfSet {
        let mut spec = spec.clone();
        (spec["selector"], spec["template"]) = (json!({}), json!({}));
        pods(&serde_json::from_value(json!({ "metadata": {}, "spec": spec })).unwrap())
    }

    #[test]
    fn the_last_pod_is_known_by_start_and_replicas() {
        let plain = PodsOfSet { first: 0, replicas: 1, deletes_claims: false };
        assert_eq!(set(&json!({})), plain);
        let later = set(&json!({ "replicas": 3, "ordinals": { "start": 5 } }));
        assert_eq!(later, PodsOfSet { first: 5, replicas: 3, ..plain });
    }

    #[test]
    fn claims_go_only_where_there_are_some_and_the_set_says_so() {
        let policy = |when: &str| json!({ "whenScaled": when, "whenDeleted": "Retain" });
        let claims = json!([{ "metadata": { "name": "data" }, "spec": {} }]);
        let of = |claims: &Value, when: &str| {
            let spec = json!({
                "volumeClaimTemplates": claims, "persistentVolumeClaimRetentionPolicy": policy(when),
            });
            set(&spec).deletes_claims
        };
        assert!(of(&claims, "Delete"));
        assert!(!of(&claims, "Retain"));
        assert!(!of(&json!([]), "Delete"));
    }
}
