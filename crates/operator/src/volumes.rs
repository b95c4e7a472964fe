//! The source's volume claims: on how many nodes at once, and on which, they can be used.

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim, Pod,
};
use kube::{Api, Client, ResourceExt};
use shadow_protocol::observation::{Claim, Trouble};

use crate::act::kube_trouble;

/// A claim, and the volume that it is bound to.
pub struct Volume {
    claim: PersistentVolumeClaim,
    volume: Option<PersistentVolume>,
}

/// The volumes that `pod` claims.
pub async fn of(client: &Client, pod: &Pod) -> Result<Vec<Volume>, Trouble> {
    let spec = pod.spec.clone().unwrap_or_default();
    let claimed = spec.volumes.into_iter().flatten().filter_map(|it| it.persistent_volume_claim);
    let claims: Api<PersistentVolumeClaim> =
        Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let mut found = Vec::new();
    for name in claimed.map(|it| it.claim_name) {
        let claim = claims.get(&name).await;
        let claim = claim.map_err(|error| kube_trouble("read volume claim", &name, &error))?;
        let bound = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone());
        let volume = match bound {
            Some(name) => {
                let volume = volumes.get_opt(&name).await;
                volume.map_err(|error| kube_trouble("read volume", &name, &error))?
            }
            None => None,
        };
        found.push(Volume { claim, volume });
    }
    Ok(found)
}

impl Volume {
    /// In the protocol's terms.
    pub fn claim(&self) -> Claim {
        let status = self.claim.status.as_ref().and_then(|status| status.access_modes.as_ref());
        let spec = self.claim.spec.as_ref().and_then(|spec| spec.access_modes.as_ref());
        let mut modes = status.or(spec).into_iter().flatten();
        let shared = modes.any(|mode| mode == "ReadWriteMany" || mode == "ReadOnlyMany");
        Claim { name: self.claim.name_any(), shared }
    }

    /// Why it can't be used at `node`, if so.
    pub fn problem_at(&self, node: &Node) -> Option<String> {
        let volume = self.volume.as_ref()?;
        let affinity = volume.spec.as_ref()?.node_affinity.as_ref()?;
        let terms = &affinity.required.as_ref()?.node_selector_terms;
        (!terms.iter().any(|term| selects(term, node))).then(|| {
            format!(
                "volume {} of claim {} can't be reached from node {}",
                volume.name_any(),
                self.claim.name_any(),
                node.name_any()
            )
        })
    }
}

/// As Kubernetes defines it: all requirements of a term, and an empty term selects nothing.
fn selects(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = term.match_expressions.iter().flatten();
    let fields = term.match_fields.iter().flatten();
    let name = node.name_any();
    let mut all = labels
        .map(|it| holds(it, node.labels().get(&it.key).map(String::as_str)))
        .chain(fields.map(|it| holds(it, (it.key == "metadata.name").then_some(name.as_str()))))
        .peekable();
    all.peek().is_some() && all.all(|holds| holds)
}

fn holds(wanted: &NodeSelectorRequirement, found: Option<&str>) -> bool {
    let values = wanted.values.as_deref().unwrap_or_default();
    let among = found.is_some_and(|found| values.iter().any(|value| value == found));
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
    let limit = number(values.first().map(String::as_str));
    match wanted.operator.as_str() {
        "In" => among,
        "NotIn" => !among,
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => number(found).zip(limit).is_some_and(|(found, limit)| found > limit),
        "Lt" => number(found).zip(limit).is_some_and(|(found, limit)| found < limit),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn volume(claim: &Value, volume: &Value) -> Volume {
        let named =
            |name: &str, spec: &Value| json!({ "metadata": { "name": name }, "spec": spec });
        Volume {
            claim: serde_json::from_value(named("data", claim)).unwrap(),
            volume: serde_json::from_value(named("disk", volume)).unwrap(),
        }
    }

    fn node() -> Node {
        let labels = json!({ "zone": "a", "disks": "4" });
        serde_json::from_value(json!({ "metadata": { "name": "worker-2", "labels": labels } }))
            .unwrap()
    }

    #[test]
    fn only_claims_of_many_are_shared() {
        for (mode, shared) in [
            ("ReadWriteMany", true),
            ("ReadOnlyMany", true),
            ("ReadWriteOnce", false),
            ("ReadWriteOncePod", false),
        ] {
            let found = volume(&json!({ "accessModes": [mode] }), &json!({}));
            assert_eq!(found.claim(), Claim { name: "data".to_owned(), shared }, "{mode}");
        }
    }

    #[test]
    fn a_volume_is_reached_from_the_nodes_that_it_selects() {
        let at = |terms: Value| {
            let affinity = json!({ "required": { "nodeSelectorTerms": terms } });
            volume(&json!({}), &json!({ "nodeAffinity": affinity })).problem_at(&node())
        };
        let label = |key: &str, operator: &str, values: Value| json!({ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] });
        let named = |name: &str| {
            let field = json!({ "key": "metadata.name", "operator": "In", "values": [name] });
            json!({ "matchFields": [field] })
        };
        assert_eq!(volume(&json!({}), &json!({})).problem_at(&node()), None);
        for good in [
            label("zone", "In", json!(["a", "b"])),
            label("zone", "NotIn", json!(["b"])),
            label("zone", "Exists", json!(null)),
            label("region", "DoesNotExist", json!(null)),
            label("disks", "Gt", json!(["3"])),
            label("disks", "Lt", json!(["5"])),
            named("worker-2"),
        ] {
            assert_eq!(at(json!([good])), None, "{good}");
            assert_eq!(at(json!([named("worker-9"), good])), None, "one term is enough");
        }
        for bad in [
            label("zone", "In", json!(["b"])),
            label("zone", "NotIn", json!(["a"])),
            label("region", "Exists", json!(null)),
            label("zone", "DoesNotExist", json!(null)),
            label("disks", "Gt", json!(["4"])),
            label("zone", "Lt", json!(["4"])),
            named("worker-1"),
            json!({}),
        ] {
            let said = at(json!([bad]));
            let words = "volume disk of claim data can't be reached from node worker-2";
            assert_eq!(said.as_deref(), Some(words), "{bad}");
        }
    }
}
