//! Admission: while a StatefulSet's pod is on its way, its name is kept for the copy
//! (`docs/adr/0003-the-operator-creates-the-copy.md`), and while a Deployment is pinned, its new ReplicaSet
//! makes no pod beside the copy (`docs/adr/0004-pinned-by-a-replica-set.md`).
//!
//! A `ValidatingAdmissionPolicy` of the migration's own denies everybody else the creation of that one
//! pod. The API server enforces it whether or not an operator runs, and it concerns no other pod.
//! What the copy is to be is written down in a `PodTemplate` before its source is deleted, so that
//! any operator can create it. That bears the pod's name, so that of two migrations of one pod only
//! the first can keep it: each would deny the other its copy.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::{
    MatchCondition, MatchResources, NamedRuleWithOperations, ValidatingAdmissionPolicy,
    ValidatingAdmissionPolicyBinding, ValidatingAdmissionPolicyBindingSpec,
    ValidatingAdmissionPolicySpec, Validation,
};
use k8s_openapi::api::core::v1::{Pod, PodTemplate, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::ObjectMeta;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use shadow_api::names::ANNOTATION_UID;
use shadow_api::{LABEL_MIGRATION, StatefulMigration};
use shadow_protocol::observation::Trouble;
use shadow_protocol::phase::{Image, Plan};

use crate::act::{Hands, Outcome, exists, kube_trouble, not_found};
use crate::observe::chain;
use crate::target_pod::{FINALIZER_COPY, OWNERS_LABEL, TargetPlan, copy, is_of, restored_copy};
use crate::transfer_job::owners;

/// Who writes the policy, for server-side apply.
const MANAGER: &str = "shadow-operator";
/// Limit for the API server to heed a policy it has stored.
const HEEDED: Duration = Duration::from_secs(8);
/// Until the API server is asked again what it serves.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Between two looks whether it does.
const LOOK: Duration = Duration::from_millis(50);

/// Whether the API server can keep names: from Kubernetes 1.30 on. Asked until it answers.
pub async fn served(client: &Client) -> bool {
    loop {
        match client.list_api_group_resources("admissionregistration.k8s.io/v1").await {
            Ok(group) => {
                let name = "validatingadmissionpolicies";
                return group.resources.iter().any(|resource| resource.name == name);
            }
            Err(error) if not_found(&error) => return false,
            Err(error) => {
                let why = chain(&error);
                tracing::warn!(why, "can't ask the API server what it serves, retrying");
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    }
}

fn policy_name(migration: &StatefulMigration) -> String {
    format!("shadow-{}", migration.uid().unwrap_or_default())
}

fn template_name(pod: &str) -> String {
    format!("shadow-{pod}")
}

/// That a label of the object has this value.
fn labelled(key: &str, value: &str) -> String {
    let labels = "object.metadata.labels";
    format!("has({labels}) && '{key}' in {labels} && {labels}['{key}'] == '{value}'")
}

/// Denies the creation of the pod `name` to all but the migration.
fn policy(migration: &StatefulMigration, name: &str) -> ValidatingAdmissionPolicy {
    let (namespace, ours) = (migration.namespace().unwrap_or_default(), migration.name_any());
    let message = format!(
        "pod {name} is being moved by StatefulMigration {namespace}/{ours}, which keeps its name for \
         the copy; it gives the name free when it ends"
    );
    let named = format!("object.metadata.name == '{name}'");
    denial(migration, &named, &labelled(LABEL_MIGRATION, &ours), message)
}

/// Denies everybody the creation of pods with this hash of a template.
fn no_other(migration: &StatefulMigration, hash: &str) -> ValidatingAdmissionPolicy {
    let (namespace, ours) = (migration.namespace().unwrap_or_default(), migration.name_any());
    let message = format!(
        "the ReplicaSet is to adopt the pod that StatefulMigration {namespace}/{ours} has moved, and makes \
         no other until it has"
    );
    denial(migration, &labelled(OWNERS_LABEL, hash), "false", message)
}

/// Denies the creation of pods that `concerned` is true of, unless `allowed` is.
fn denial(
    migration: &StatefulMigration,
    concerned: &str,
    allowed: &str,
    message: String,
) -> ValidatingAdmissionPolicy {
    let namespace = migration.namespace().unwrap_or_default();
    ValidatingAdmissionPolicy {
        metadata: metadata(migration),
        spec: Some(ValidatingAdmissionPolicySpec {
            failure_policy: Some("Fail".to_owned()),
            match_constraints: Some(MatchResources {
                namespace_selector: Some(LabelSelector {
                    match_labels: Some(BTreeMap::from([(
                        "kubernetes.io/metadata.name".to_owned(),
                        namespace,
                    )])),
                    ..LabelSelector::default()
                }),
                resource_rules: Some(vec![NamedRuleWithOperations {
                    api_groups: Some(vec![String::new()]),
                    api_versions: Some(vec!["v1".to_owned()]),
                    operations: Some(vec!["CREATE".to_owned()]),
                    resources: Some(vec!["pods".to_owned()]),
                    ..NamedRuleWithOperations::default()
                }]),
                ..MatchResources::default()
            }),
            match_conditions: Some(vec![MatchCondition {
                name: "the-pod-that-moves".to_owned(),
                expression: concerned.to_owned(),
            }]),
            validations: Some(vec![Validation {
                expression: allowed.to_owned(),
                message: Some(message),
                reason: Some("Forbidden".to_owned()),
                ..Validation::default()
            }]),
            ..ValidatingAdmissionPolicySpec::default()
        }),
        status: None,
    }
}

fn binding(migration: &StatefulMigration) -> ValidatingAdmissionPolicyBinding {
    ValidatingAdmissionPolicyBinding {
        metadata: metadata(migration),
        spec: ValidatingAdmissionPolicyBindingSpec {
            policy_name: policy_name(migration),
            validation_actions: vec!["Deny".to_owned()],
            ..ValidatingAdmissionPolicyBindingSpec::default()
        },
    }
}

fn metadata(migration: &StatefulMigration) -> ObjectMeta {
    let labels = BTreeMap::from([(LABEL_MIGRATION.to_owned(), migration.name_any())]);
    let uid = migration.uid().unwrap_or_default();
    ObjectMeta {
        name: Some(policy_name(migration)),
        labels: Some(labels),
        annotations: Some(BTreeMap::from([(ANNOTATION_UID.to_owned(), uid)])),
        ..ObjectMeta::default()
    }
}

impl Hands<'_> {
    /// Writes down what the copy is to be, while there is a pod to copy, and has the API server
    /// keep its name. Done when the API server heeds it.
    pub(crate) async fn hold(&self) -> Result<Outcome, Trouble> {
        let plan = self.plan()?;
        let template = self.written_down(plan).await?;
        let mut pod = Pod {
            metadata: template.metadata.unwrap_or_default(),
            spec: template.spec,
            status: None,
        };
        pod.metadata.name = Some(plan.target_pod.clone());
        pod.metadata.labels.get_or_insert_default().remove(LABEL_MIGRATION);
        self.denied(policy(self.migration, &plan.target_pod), &pod).await
    }

    /// Has the API server deny everybody the creation of pods with this hash of a template, of which `pod` is
    /// one. Done when it does.
    pub(crate) async fn deny_others(&self, hash: &str, pod: &Pod) -> Result<Outcome, Trouble> {
        self.denied(no_other(self.migration, hash), pod).await
    }

    async fn denied(
        &self,
        policy: ValidatingAdmissionPolicy,
        pod: &Pod,
    ) -> Result<Outcome, Trouble> {
        let policies: Api<ValidatingAdmissionPolicy> = Api::all(self.cluster.client.clone());
        let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(self.cluster.client.clone());
        applied(&policies, &policy).await?;
        applied(&bindings, &binding(self.migration)).await?;
        self.heeded(pod).await
    }

    /// Has no other migration move the pod, which must not even be checkpointed twice at a time.
    pub(crate) async fn claim(&self) -> Result<Outcome, Trouble> {
        self.written_down(self.plan()?).await.map(|_| Outcome::Done)
    }

    /// The copy before its image is known, from the source, or from what was written down before that
    /// went.
    async fn written_down(&self, plan: &Plan) -> Result<PodTemplateSpec, Trouble> {
        let origin = &plan.origin().source_pod;
        let name = template_name(origin);
        if let Some(found) = self.template(&name).await? {
            self.owns(&found)?;
            return Ok(found.template.unwrap_or_default());
        }
        let source = self.pods().get(origin).await;
        let source = source.map_err(|error| kube_trouble("read source pod", origin, &error))?;
        let template = copy(
            &source,
            &TargetPlan {
                migration: self.migration,
                name: &plan.target_pod,
                container: &plan.container,
                image: &plan.base_image,
                transfer: plan.transfer,
                base_image: &plan.base_image,
                node: "",
                beside: None,
                replaced_by_owner: true,
            },
        );
        let object = PodTemplate {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: self.migration.namespace(),
                owner_references: owners(self.migration),
                // The copy may be all that is left to be made: it must not go with a migration that is
                // deleted by force, or before what it owns.
                finalizers: Some(vec![FINALIZER_COPY.to_owned()]),
                ..metadata(self.migration)
            },
            template: Some(template.clone()),
        };
        let created = self.templates().create(&PostParams::default(), &object).await;
        // Whose the one is that exists already shows when this is tried again.
        created.map(|_| template).map_err(|error| kube_trouble("create PodTemplate", &name, &error))
    }

    async fn template(&self, name: &str) -> Result<Option<PodTemplate>, Trouble> {
        let found = self.templates().get_opt(name).await;
        found.map_err(|error| kube_trouble("read PodTemplate", name, &error))
    }

    fn owns(&self, template: &PodTemplate) -> Result<(), Trouble> {
        let owner = template.owner_references().first();
        let uid = template.annotations().get(ANNOTATION_UID);
        if uid.or(owner.map(|owner| &owner.uid)) == self.migration.uid().as_ref() {
            return Ok(());
        }
        let other = template.labels().get(LABEL_MIGRATION).map_or("somebody else", String::as_str);
        Err(Trouble {
            reason: "NameKept".to_owned(),
            message: format!(
                "keep the name of pod {} for its copy: {other} keeps it (PodTemplate {}); wait until \
                 that has ended, then create the migration again",
                template.name_any().trim_start_matches("shadow-"),
                template.name_any()
            ),
            permanent: true,
        })
    }

    /// The API server hears of a new policy after a moment: until it does, it would let anybody's
    /// pod pass. A pod that must not be created is asked for, and nothing of it is kept.
    async fn heeded(&self, pod: &Pod) -> Result<Outcome, Trouble> {
        let try_out = PostParams { dry_run: true, ..PostParams::default() };
        let name = policy_name(self.migration);
        let mut answer = "it lets the pod pass".to_owned();
        let looks = async {
            loop {
                match self.pods().create(&try_out, pod).await {
                    Err(kube::Error::Api(status)) if status.message.contains(&name) => return,
                    Err(error) => answer = chain(&error),
                    Ok(_) => {}
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(HEEDED, looks).await.map(|()| Outcome::Done).map_err(|_| Trouble {
            reason: "NameNotKept".to_owned(),
            message: format!(
                "have the API server deny everybody else pod {}: it does not heed \
                 ValidatingAdmissionPolicy {name} after {} s: {answer}",
                pod.name_any(),
                HEEDED.as_secs()
            ),
            permanent: false,
        })
    }

    /// Creates the copy as its owner's own.
    pub(crate) async fn admit(&self, node: &str) -> Result<Outcome, Trouble> {
        let plan = self.plan()?;
        let image: &Image = self.image()?;
        let name = template_name(&plan.origin().source_pod);
        let found = self.templates().get(&name).await;
        let found = found.map_err(|error| kube_trouble("read PodTemplate", &name, &error))?;
        let template = found.template.unwrap_or_default();
        let pod = restored_copy(template, &plan.container, &image.reference, node);
        match self.pods().create(&PostParams::default(), &pod).await {
            Err(error) if exists(&error) => self.is_ours(plan).await,
            Err(error) => Err(kube_trouble("create the copy", &plan.target_pod, &error)),
            Ok(_) => Ok(Outcome::Done),
        }
    }

    async fn is_ours(&self, plan: &Plan) -> Result<Outcome, Trouble> {
        let name = &plan.target_pod;
        let found = self.pods().get_opt(name).await;
        let found = found.map_err(|error| kube_trouble("read the copy", name, &error))?;
        if found.as_ref().is_some_and(|pod| is_of(pod, self.migration)) {
            return Ok(Outcome::Done);
        }
        Err(Trouble {
            reason: "NameTaken".to_owned(),
            message: format!(
                "create the copy {name}: another pod of that name is there, although it is kept; \
                 delete it"
            ),
            permanent: false,
        })
    }

    /// Undoes [`Hands::hold`].
    pub(crate) async fn release(&self) -> Result<Outcome, Trouble> {
        self.allow().await?;
        let template = template_name(&self.plan()?.origin().source_pod);
        match self.template(&template).await? {
            Some(found) if self.owns(&found).is_ok() => {
                let_go(&self.templates(), "PodTemplate", &found).await?;
                deleted(&self.templates(), "PodTemplate", &template).await?;
            }
            _ => {}
        }
        Ok(Outcome::Done)
    }

    /// Undoes [`Hands::deny_others`].
    pub(crate) async fn allow(&self) -> Result<(), Trouble> {
        let name = policy_name(self.migration);
        let client = &self.cluster.client;
        let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
        let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client.clone());
        deleted(&bindings, "ValidatingAdmissionPolicyBinding", &name).await?;
        deleted(&policies, "ValidatingAdmissionPolicy", &name).await
    }

    /// A copy's object stays until nobody needs to see any more what became of it.
    pub(crate) async fn let_go(&self, name: &str) -> Result<Outcome, Trouble> {
        let found = self.pods().get_opt(name).await;
        let found = found.map_err(|error| kube_trouble("read pod", name, &error))?;
        if let Some(pod) = found {
            let_go(&self.pods(), "pod", &pod).await?;
        }
        Ok(Outcome::Done)
    }

    fn templates(&self) -> Api<PodTemplate> {
        let namespace = self.migration.namespace().unwrap_or_default();
        Api::namespaced(self.cluster.client.clone(), &namespace)
    }
}

/// Takes the finalizer away that keeps an object from going unseen.
pub(crate) async fn let_go<K>(api: &Api<K>, kind: &str, object: &K) -> Result<(), Trouble>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    if !object.finalizers().iter().any(|it| it == FINALIZER_COPY) {
        return Ok(());
    }
    let name = object.name_any();
    let others: Vec<&String> =
        object.finalizers().iter().filter(|it| *it != FINALIZER_COPY).collect();
    let patch = Patch::Merge(json!({ "metadata": {
        "uid": object.uid(),
        "resourceVersion": object.resource_version(),
        "finalizers": others,
    }}));
    match api.patch(&name, &PatchParams::default(), &patch).await {
        Err(error) if !not_found(&error) => {
            Err(kube_trouble(&format!("let go of {kind}"), &name, &error))
        }
        _ => Ok(()),
    }
}

async fn applied<K>(api: &Api<K>, object: &K) -> Result<(), Trouble>
where
    K: Resource<DynamicType = ()> + Clone + Serialize + DeserializeOwned + std::fmt::Debug,
{
    let name = object.name_any();
    let params = PatchParams::apply(MANAGER).force();
    let done = api.patch(&name, &params, &Patch::Apply(object)).await;
    let attempted = format!("apply {}", K::kind(&()));
    done.map(|_| ()).map_err(|error| kube_trouble(&attempted, &name, &error))
}

pub(crate) async fn deleted<K>(api: &Api<K>, kind: &str, name: &str) -> Result<(), Trouble>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    match api.delete(name, &DeleteParams::default()).await {
        Err(error) if !not_found(&error) => {
            Err(kube_trouble(&format!("delete {kind}"), name, &error))
        }
        _ => Ok(()),
    }
}
