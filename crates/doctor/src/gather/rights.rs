//! Whether the operator has the rights that config/rbac/role.yaml gives it: the API server is asked for
//! each. That takes `create` on subjectaccessreviews.

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::api::PostParams;
use kube::{Api, Client};
use shadow_api::names::SYSTEM_NAMESPACE;

use super::{AT_ONCE, ask};
use crate::facts::{Known, Right};
use crate::text::Text;

/// The file itself, so that the two lists can't differ.
const ROLE: &str = include_str!("../../../../config/rbac/role.yaml");
const ACCOUNT: &str = "shadow-operator";

/// Asks for each right.
pub async fn ask_all(client: &Client) -> Known<Vec<Right>> {
    let asked = needed()?.into_iter().map(|right| ask_one(client, right));
    let mut rights: Vec<Right> =
        stream::iter(asked).buffer_unordered(AT_ONCE).try_collect().await?;
    rights.sort();
    Ok(rights)
}

async fn ask_one(client: &Client, right: Right) -> Known<Right> {
    let api: Api<SubjectAccessReview> = Api::all(client.clone());
    let review = review(&right);
    let answer = ask(async { api.create(&PostParams::default(), &review).await }).await?;
    Ok(Right { allowed: answer.status.is_some_and(|status| status.allowed), ..right })
}

/// The question, for all namespaces.
fn review(right: &Right) -> SubjectAccessReview {
    let (resource, subresource) = match right.resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (right.resource.as_str(), None),
    };
    let attributes = ResourceAttributes {
        group: Some(right.group.clone()),
        resource: Some(resource.to_owned()),
        subresource,
        verb: Some(right.verb.clone()),
        ..ResourceAttributes::default()
    };
    // As the API server itself adds them to a ServiceAccount.
    let groups = [
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{SYSTEM_NAMESPACE}"),
        "system:authenticated".to_owned(),
    ];
    SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:{SYSTEM_NAMESPACE}:{ACCOUNT}")),
            groups: Some(groups.into()),
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    }
}

/// Every verb on every resource of the role; none is allowed yet.
fn needed() -> Known<Vec<Right>> {
    let broken =
        |why: String| Text::from(format!("config/rbac/role.yaml is not understood: {why}"));
    let documents: Vec<serde_json::Value> =
        serde_saphyr::from_multiple(ROLE).map_err(|error| broken(error.to_string()))?;
    let role = documents.into_iter().find(|document| document["kind"] == "ClusterRole");
    let role = role.ok_or_else(|| broken("there is no ClusterRole in it".to_owned()))?;
    let role: ClusterRole =
        serde_json::from_value(role).map_err(|error| broken(error.to_string()))?;
    let mut rights = Vec::new();
    for rule in role.rules.unwrap_or_default() {
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                let of = |verb: &String| Right {
                    group: group.clone(),
                    resource: resource.clone(),
                    verb: verb.clone(),
                    allowed: false,
                };
                rights.extend(rule.verbs.iter().map(of));
            }
        }
    }
    Ok(rights)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roles_rights_are_read_from_the_file_that_is_applied() {
        let rights = needed().unwrap();
        let has = |group: &str, resource: &str, verb: &str| {
            rights.iter().any(|it| it.group == group && it.resource == resource && it.verb == verb)
        };
        assert!(has("", "nodes/proxy", "create") && has("batch", "jobs", "delete"));
        assert!(has("migration.ms2m.io", "statefulmigrations/status", "update"));
        assert!(!has("", "secrets", "list"));
        assert!(rights.len() > 40, "{}", rights.len());
    }

    #[test]
    fn a_subresource_is_asked_for_as_one() {
        let right = Right {
            group: String::new(),
            resource: "nodes/proxy".to_owned(),
            verb: "create".to_owned(),
            allowed: false,
        };
        let spec = review(&right).spec;
        assert_eq!(spec.user.as_deref(), Some("system:serviceaccount:ms2m-system:shadow-operator"));
        let attributes = spec.resource_attributes.unwrap();
        assert_eq!(attributes.resource.as_deref(), Some("nodes"));
        assert_eq!(attributes.subresource.as_deref(), Some("proxy"));
    }
}
